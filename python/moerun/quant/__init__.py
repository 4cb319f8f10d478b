"""Quantised experts: from bf16, fp16 and fp32 into blobs, and the cache of what was quantised before."""

from moerun.quant.blobs import blobs_in, layout_of
from moerun.quant.cache import cache_folder, cache_size
from moerun.quant.load import load_quantised
from moerun.quant.progress import ExpertsBar
from moerun.quant.quantise import quantise_layer

__all__ = [
    "ExpertsBar",
    "blobs_in",
    "cache_folder",
    "cache_size",
    "layout_of",
    "load_quantised",
    "quantise_layer",
]
