"""Reads Mixture-of-Experts checkpoints in Hugging Face's format: config.json and safetensors files."""

from moerun.checkpoint.checkpoint import Checkpoint
from moerun.checkpoint.families import FAMILIES

__all__ = ["FAMILIES", "Checkpoint"]
