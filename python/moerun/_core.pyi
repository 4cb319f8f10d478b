"""
The C++ core of moerun. Use the moerun package; names here may change.
"""

from __future__ import annotations

import typing

import numpy
import numpy.typing

__all__: list[str] = [
    "Activation",
    "ActivationSpec",
    "Batch",
    "DType",
    "Engine",
    "Job",
    "Layer",
    "MappedFile",
    "available_isas",
    "choose_isa",
    "cpu_info",
    "measure_limits",
    "openmp_runtime",
    "probe_gpu",
    "set_openmp_hint",
]

class DType:
    """
    Members:

      fp32

      fp16

      bf16
    """

    __members__: typing.ClassVar[dict[str, DType]]
    bf16: typing.ClassVar[DType]
    fp16: typing.ClassVar[DType]
    fp32: typing.ClassVar[DType]
    @typing.overload
    def __eq__(self, other: DType) -> bool: ...
    @typing.overload
    def __eq__(self, other: typing.Any) -> bool: ...
    def __getstate__(self) -> int: ...
    def __hash__(self) -> int: ...
    def __index__(self) -> int: ...
    def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    def __int__(self) -> int: ...
    @typing.overload
    def __ne__(self, other: DType) -> bool: ...
    @typing.overload
    def __ne__(self, other: typing.Any) -> bool: ...
    def __repr__(self) -> str: ...
    def __setstate__(self, state: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    def __str__(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def value(self) -> int: ...

class Activation:
    """
    Members:

      silu

      gelu

      gelu_tanh

      relu2

      swiglu_oai
    """

    __members__: typing.ClassVar[dict[str, Activation]]
    gelu: typing.ClassVar[Activation]
    gelu_tanh: typing.ClassVar[Activation]
    relu2: typing.ClassVar[Activation]
    silu: typing.ClassVar[Activation]
    swiglu_oai: typing.ClassVar[Activation]
    @typing.overload
    def __eq__(self, other: Activation) -> bool: ...
    @typing.overload
    def __eq__(self, other: typing.Any) -> bool: ...
    def __getstate__(self) -> int: ...
    def __hash__(self) -> int: ...
    def __index__(self) -> int: ...
    def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    def __int__(self) -> int: ...
    @typing.overload
    def __ne__(self, other: Activation) -> bool: ...
    @typing.overload
    def __ne__(self, other: typing.Any) -> bool: ...
    def __repr__(self) -> str: ...
    def __setstate__(self, state: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    def __str__(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def value(self) -> int: ...

class ActivationSpec:
    def __init__(
        self,
        kind: Activation,
        alpha: typing.SupportsFloat | typing.SupportsIndex = 1.7020000219345093,
        limit: typing.SupportsFloat | typing.SupportsIndex = 7.0,
    ) -> None: ...

class Layer:
    @property
    def expert_bytes(self) -> int: ...
    @property
    def index(self) -> int: ...

class Job:
    def done(self) -> bool: ...
    def wait(self) -> None: ...

class Batch:
    def __init__(
        self,
        tokens: typing.SupportsInt | typing.SupportsIndex,
        top_k: typing.SupportsInt | typing.SupportsIndex,
        x: tuple[typing.SupportsInt | typing.SupportsIndex, DType, typing.SupportsInt | typing.SupportsIndex],
        ids: typing.SupportsInt | typing.SupportsIndex,
        ids_are_64_bit: bool,
        ids_stride: typing.SupportsInt | typing.SupportsIndex,
        weights: tuple[
            typing.SupportsInt | typing.SupportsIndex, DType, typing.SupportsInt | typing.SupportsIndex
        ],
        out: tuple[
            typing.SupportsInt | typing.SupportsIndex, DType, typing.SupportsInt | typing.SupportsIndex
        ],
    ) -> None: ...

class Engine:
    def __init__(self, cpu_threads: typing.SupportsInt | typing.SupportsIndex = 0, isa: str = "") -> None: ...
    def add_layer(
        self,
        hidden: typing.SupportsInt | typing.SupportsIndex,
        inter: typing.SupportsInt | typing.SupportsIndex,
        top_k: typing.SupportsInt | typing.SupportsIndex,
        weights_type: DType,
        activation: ActivationSpec,
        gate: typing.Annotated[numpy.typing.ArrayLike, numpy.uint64],
        up: typing.Annotated[numpy.typing.ArrayLike, numpy.uint64],
        down: typing.Annotated[numpy.typing.ArrayLike, numpy.uint64],
        gate_up_strides: tuple[
            typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex
        ],
        down_strides: tuple[
            typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex
        ],
        gate_bias: typing.Annotated[numpy.typing.ArrayLike, numpy.float32] | None,
        up_bias: typing.Annotated[numpy.typing.ArrayLike, numpy.float32] | None,
        down_bias: typing.Annotated[numpy.typing.ArrayLike, numpy.float32] | None,
        owner: typing.Any,
    ) -> Layer: ...
    def close(self) -> None: ...
    def forward(self, layer: Layer, batch: Batch) -> None: ...
    def stats(self) -> dict: ...
    def submit(self, layer: Layer, batch: Batch, arrays: typing.Any) -> Job: ...
    def write_trace(self, path: str) -> None: ...
    @property
    def closed(self) -> bool: ...

class MappedFile:
    """
    One file, mapped read-only; a read-only buffer of its bytes. CheckpointError if it cannot be mapped or is not expected_bytes long.
    """
    def __init__(self, path: str, expected_bytes: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    def prefetch(
        self,
        offset: typing.SupportsInt | typing.SupportsIndex,
        bytes: typing.SupportsInt | typing.SupportsIndex,
    ) -> None:
        """
        Asks the kernel to start reading these bytes into memory; does not wait.
        """
    @property
    def address(self) -> int:
        """
        Address of the first byte. Valid for as long as this object lives.
        """
    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int:
        """
        Length in bytes.
        """

def available_isas() -> list[str]:
    """
    Rows of the kernel table that this machine can run, best first.
    """

def choose_isa(isa: str = "") -> str:
    """
    The row that an engine would use: `isa`, or else MOERUN_ISA, or else the best. Raises ValueError.
    """

def cpu_info() -> dict:
    """
    Processor, usable cores, caches (bytes) and instruction sets.
    """

def measure_limits(
    threads: typing.SupportsInt | typing.SupportsIndex,
    buffer_bytes: typing.SupportsInt | typing.SupportsIndex,
    isa: str = "",
    seconds: typing.SupportsFloat | typing.SupportsIndex = 1.0,
    repeats: typing.SupportsInt | typing.SupportsIndex = 9,
) -> dict:
    """
    Read bandwidth (GB/s) and dot-product peak (GFLOP/s by format), each measured for `seconds`.
    """

def openmp_runtime() -> str:
    """
    Path of the OpenMP runtime in use, or why there is none.
    """

def probe_gpu() -> dict:
    """
    CUDA devices, or the reason why there are none.
    """

def set_openmp_hint(path: str) -> None:
    """
    Folder to look for an OpenMP runtime in, if none is loaded yet.
    """
