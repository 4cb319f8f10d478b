"""The GPU kernels: written in Triton, compiled ahead of time, launched from C++.

contract.py says what they compute and how they are launched. The rest in the order of use: build (all kernels
of a layer, from cache or compiled by worker and compile), tiles (their sizes), layout (what is compiled in),
moe, weights and activation (the kernels). launch and lists run them from Python, for benches and tests.
Nothing here is imported by `import moerun`, and triton only in processes that compile or run kernels.
"""

from __future__ import annotations

from moerun.kernels.build import described_kernels, layer_kernels
from moerun.kernels.contract import Kernel, KernelShape, LayerKernels, Regime

__all__ = ["Kernel", "KernelShape", "LayerKernels", "Regime", "described_kernels", "layer_kernels"]
