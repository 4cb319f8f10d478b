"""transformers models whose experts run in moerun's engine. Needs the extra: pip install 'moerun[hf]'."""

from moerun.hf.loading import from_pretrained

__all__ = ["from_pretrained"]
