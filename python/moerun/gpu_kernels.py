"""The GPU kernels of an engine, by shape of layer and type of x: compiled when a layer is added."""

from __future__ import annotations

import importlib.util
import os
import threading
from typing import TYPE_CHECKING

from moerun import _core
from moerun.errors import KernelError
from moerun.layer_spec import LayerSpec

if TYPE_CHECKING:
    from moerun.kernels.contract import Kernel, KernelShape, LayerKernels


def check_available(architecture: int | None) -> None:
    """Raises KernelError, saying what to do, if there can be no kernels for sm_`architecture` here."""
    from moerun.kernels.tiles import check_architecture

    check_architecture(architecture or 0)
    if not _described() and importlib.util.find_spec("triton") is None:
        raise KernelError(
            "the GPU kernels are compiled by triton, which is not installed: pip install 'moerun[gpu]', "
            "or use device='cpu'"
        )


class EngineKernels:
    """Loads kernels into an engine and hands them to its layers. Thread-safe."""

    def __init__(self, core: _core.Engine) -> None:
        self._core = core
        self._lock = threading.Lock()
        self._loaded: dict[KernelShape, _core.ExpertKernels] = {}
        self._given: set[tuple[int, str]] = set()  # (layer, type of x)

    def prepare(self, spec: LayerSpec, weight_format: str, x_dtype: str) -> _core.ExpertKernels:
        """Kernels for such layers and activations of this type, compiled and loaded unless they are there.

        Raises KernelError if they cannot be compiled, GpuError if they cannot be loaded.
        """
        from moerun.kernels.contract import KernelShape

        shape = KernelShape(
            hidden=spec.hidden_size,
            inter=spec.intermediate_size,
            top_k=spec.top_k,
            weight_format=weight_format,
            x_dtype=x_dtype,
            activation=spec.activation,
            bias=spec.bias,
            alpha=spec.swiglu_alpha,
            limit=spec.swiglu_limit,
        )
        with self._lock:
            if shape not in self._loaded:
                architecture = self._core.gpu_architecture
                assert architecture is not None
                self._loaded[shape] = self._core.load_kernels(to_core(_compile(shape, architecture)))
            return self._loaded[shape]

    def ensure(self, layer: _core.Layer, spec: LayerSpec, weight_format: str, x_dtype: str) -> None:
        """Gives the layer kernels for x of this type, unless it has them. Raises as prepare does."""
        if (layer.index, x_dtype) in self._given:
            return
        self._core.set_kernels(layer, self.prepare(spec, weight_format, x_dtype))
        self._given.add((layer.index, x_dtype))


def _compile(shape: KernelShape, architecture: int) -> LayerKernels:
    from moerun.kernels.build import described_kernels, layer_kernels

    return described_kernels(shape, architecture) if _described() else layer_kernels(shape, architecture)


def _described() -> bool:
    """Whether kernels are not compiled but described, for a driver that emulates them by name."""
    return os.environ.get("MOERUN_KERNELS") == "described"


def to_core(kernels: LayerKernels) -> _core.CompiledKernels:
    """The same for C++."""
    types = {name: getattr(_core.DType, name) for name in ("fp32", "fp16", "bf16")}
    shape = kernels.shape
    return _core.CompiledKernels(
        hidden=shape.hidden,
        inter=shape.inter,
        top_k=shape.top_k,
        x_type=types[shape.x_dtype],
        compute_type=types[shape.compute_dtype],
        h_stride=shape.h_stride,
        y_stride=shape.y_stride,
        regimes=[
            _core.CompiledRegime(
                tile_tokens=regime.tile_tokens,
                gate_up=_kernel(regime.gate_up),
                down=_kernel(regime.down),
                activate=None if regime.activate is None else _kernel(regime.activate),
            )
            for regime in kernels.regimes
        ],
        combine=_kernel(kernels.combine),
    )


def _kernel(kernel: Kernel) -> _core.CompiledKernel:
    return _core.CompiledKernel(
        function=kernel.function,
        image=kernel.image,
        parameter_bytes=list(kernel.parameter_bytes),
        num_warps=kernel.num_warps,
        shared_bytes=kernel.shared_bytes,
        tile_rows=kernel.tile_rows,
        tile_tokens=kernel.tile_tokens,
        split=kernel.split,
    )
