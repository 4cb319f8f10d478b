"""moerun: runs Mixture-of-Experts language models on a machine whose GPU memory is too small for them.

The engine and its kernels are C++ (moerun._core). Importing this package imports neither torch nor
transformers.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

from moerun import _core
from moerun.engine import Engine, Handle, Layer
from moerun.engine_config import EngineConfig
from moerun.errors import CheckpointError, GpuError, GpuOutOfMemoryError, MoerunError
from moerun.layer_spec import QUANTISED, WEIGHT_FORMATS, ExpertBlobs, ExpertMemory, LayerSpec

__version__ = "0.1.0"

__all__ = [
    "QUANTISED",
    "WEIGHT_FORMATS",
    "BigLittle",
    "Checkpoint",
    "CheckpointError",
    "Engine",
    "EngineConfig",
    "ExpertBlobs",
    "ExpertMemory",
    "GpuError",
    "GpuOutOfMemoryError",
    "Handle",
    "Layer",
    "LayerSpec",
    "MoerunError",
    "generate",
    "hf",
    "policy",
    "replay",
    "routing",
]


def _point_core_at_torchs_openmp() -> None:
    """Tells the core where torch's OpenMP runtime lies: a process should have one (see cpu/team.h)."""
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        _core.set_openmp_hint(os.path.join(os.path.dirname(spec.origin), "lib"))


_point_core_at_torchs_openmp()


def __getattr__(name: str) -> Any:
    if name == "Checkpoint":
        return importlib.import_module("moerun.checkpoint").Checkpoint
    if name == "BigLittle":
        return importlib.import_module("moerun.big_little.options").BigLittle
    if name == "generate":
        return importlib.import_module("moerun.big_little.generate").generate
    if name in ("hf", "policy", "replay", "routing"):
        return importlib.import_module(f"moerun.{name}")
    raise AttributeError(f"module 'moerun' has no attribute {name!r}")
