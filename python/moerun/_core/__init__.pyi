"""
The C++ core of moerun. Use the moerun package; names here may change.
"""
from __future__ import annotations
import collections.abc
import numpy
import numpy.typing
import typing
from . import policy
__all__: list[str] = ['Activation', 'ActivationSpec', 'AttentionBatch', 'AttentionView', 'Batch', 'BlobLayout', 'BlobMatrix', 'CacheTable', 'Caches', 'CompiledKernel', 'CompiledKernels', 'CompiledRegime', 'DType', 'DecoderStack', 'DecoderView', 'DotType', 'Engine', 'ExpertKernels', 'GpuOptions', 'HeadNorm', 'Job', 'KeyValues', 'Layer', 'LimitMeter', 'LinearView', 'MappedFile', 'MatrixLayout', 'Pairs', 'RouterView', 'Scoring', 'TokenTables', 'WeightFormat', 'available_isas', 'checksums', 'choose_isa', 'cpu_info', 'measure_limits', 'openmp_runtime', 'policy', 'probe_gpu', 'quantise', 'quantise_matrix', 'read_nodes', 'set_openmp_hint', 'use_huge_pages', 'weight_bytes']

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
    def __eq__(self, other: DType) -> bool:
        ...

    @typing.overload
    def __eq__(self, other: typing.Any) -> bool:
        ...

    def __getstate__(self) -> int:
        ...

    def __hash__(self) -> int:
        ...

    def __index__(self) -> int:
        ...

    def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    def __int__(self) -> int:
        ...

    @typing.overload
    def __ne__(self, other: DType) -> bool:
        ...

    @typing.overload
    def __ne__(self, other: typing.Any) -> bool:
        ...

    def __repr__(self) -> str:
        ...

    def __setstate__(self, state: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    def __str__(self) -> str:
        ...

    @property
    def name(self) -> str:
        ...

    @property
    def value(self) -> int:
        ...

class WeightFormat:
    """
    Members:
    
      fp32
    
      fp16
    
      bf16
    
      int8
    
      int8_g128
    
      int4_g32
    
      int4_g64
    
      int4_g128
    
      int4z_g32
    
      int4z_g64
    
      int4z_g128
    
      fp8_b128
    
      mxfp4
    """
    __members__: typing.ClassVar[dict[str, WeightFormat]]
    bf16: typing.ClassVar[WeightFormat]
    fp16: typing.ClassVar[WeightFormat]
    fp32: typing.ClassVar[WeightFormat]
    fp8_b128: typing.ClassVar[WeightFormat]
    int4_g128: typing.ClassVar[WeightFormat]
    int4_g32: typing.ClassVar[WeightFormat]
    int4_g64: typing.ClassVar[WeightFormat]
    int4z_g128: typing.ClassVar[WeightFormat]
    int4z_g32: typing.ClassVar[WeightFormat]
    int4z_g64: typing.ClassVar[WeightFormat]
    int8: typing.ClassVar[WeightFormat]
    int8_g128: typing.ClassVar[WeightFormat]
    mxfp4: typing.ClassVar[WeightFormat]

    @typing.overload
    def __eq__(self, other: WeightFormat) -> bool:
        ...

    @typing.overload
    def __eq__(self, other: typing.Any) -> bool:
        ...

    def __getstate__(self) -> int:
        ...

    def __hash__(self) -> int:
        ...

    def __index__(self) -> int:
        ...

    def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    def __int__(self) -> int:
        ...

    @typing.overload
    def __ne__(self, other: WeightFormat) -> bool:
        ...

    @typing.overload
    def __ne__(self, other: typing.Any) -> bool:
        ...

    def __repr__(self) -> str:
        ...

    def __setstate__(self, state: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    def __str__(self) -> str:
        ...

    @property
    def name(self) -> str:
        ...

    @property
    def value(self) -> int:
        ...

class BlobMatrix:
    """
    One weight section of a blob; offsets are bytes from the blob's start.
    """

    @property
    def codes(self) -> int:
        ...

    @property
    def columns(self) -> int:
        ...

    @property
    def row_bytes(self) -> int:
        ...

    @property
    def row_stride(self) -> int:
        ...

    @property
    def rows(self) -> int:
        ...

    @property
    def scale_rows(self) -> int:
        ...

    @property
    def scale_stride(self) -> int:
        ...

    @property
    def scales(self) -> int:
        ...

    @property
    def zeros(self) -> int:
        ...

class BlobLayout:
    """
    Where everything lies in an expert's blob (src/expert_store/blob_layout.h).
    """

    def __init__(self, format: WeightFormat, hidden: typing.SupportsInt | typing.SupportsIndex, inter: typing.SupportsInt | typing.SupportsIndex, bias: bool) -> None:
        ...

    @property
    def bias(self) -> bool:
        ...

    @property
    def bytes(self) -> int:
        ...

    @property
    def down(self) -> BlobMatrix:
        ...

    @property
    def down_bias(self) -> int:
        ...

    @property
    def format(self) -> WeightFormat:
        ...

    @property
    def gate_up(self) -> BlobMatrix:
        ...

    @property
    def gate_up_bias(self) -> int:
        ...

class GpuOptions:

    def __init__(self, *, device: typing.SupportsInt | typing.SupportsIndex=0, schedule: str='balanced', cache: str='mrs', prefetch: bool=True, time_every: typing.SupportsInt | typing.SupportsIndex=1, history: bool=False, stream_waits: bool=True, pin: bool=True, cache_bytes: typing.SupportsInt | typing.SupportsIndex | None=None, cache_fraction: typing.SupportsFloat | typing.SupportsIndex | None=None) -> None:
        ...

class CompiledKernel:

    def __init__(self, *, function: str, image: bytes, parameter_bytes: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], num_warps: typing.SupportsInt | typing.SupportsIndex, shared_bytes: typing.SupportsInt | typing.SupportsIndex, tile_rows: typing.SupportsInt | typing.SupportsIndex, tile_tokens: typing.SupportsInt | typing.SupportsIndex, split: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

class CompiledRegime:

    def __init__(self, *, tile_tokens: typing.SupportsInt | typing.SupportsIndex, gate_up: CompiledKernel, down: CompiledKernel, activate: CompiledKernel | None) -> None:
        ...

class CompiledKernels:

    def __init__(self, *, hidden: typing.SupportsInt | typing.SupportsIndex, inter: typing.SupportsInt | typing.SupportsIndex, top_k: typing.SupportsInt | typing.SupportsIndex, x_type: DType, compute_type: DType, h_stride: typing.SupportsInt | typing.SupportsIndex, y_stride: typing.SupportsInt | typing.SupportsIndex, regimes: collections.abc.Sequence[CompiledRegime], combine: CompiledKernel) -> None:
        ...

class ExpertKernels:
    pass

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
    def __eq__(self, other: Activation) -> bool:
        ...

    @typing.overload
    def __eq__(self, other: typing.Any) -> bool:
        ...

    def __getstate__(self) -> int:
        ...

    def __hash__(self) -> int:
        ...

    def __index__(self) -> int:
        ...

    def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    def __int__(self) -> int:
        ...

    @typing.overload
    def __ne__(self, other: Activation) -> bool:
        ...

    @typing.overload
    def __ne__(self, other: typing.Any) -> bool:
        ...

    def __repr__(self) -> str:
        ...

    def __setstate__(self, state: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    def __str__(self) -> str:
        ...

    @property
    def name(self) -> str:
        ...

    @property
    def value(self) -> int:
        ...

class ActivationSpec:

    def __init__(self, kind: Activation, alpha: typing.SupportsFloat | typing.SupportsIndex=1.7020000219345093, limit: typing.SupportsFloat | typing.SupportsIndex=7.0) -> None:
        ...

class Layer:

    @property
    def expert_bytes(self) -> int:
        ...

    @property
    def index(self) -> int:
        ...

class Job:

    def done(self) -> bool:
        ...

    def wait(self) -> None:
        ...

    def wait_until_done(self) -> None:
        ...

    @property
    def stream_waits(self) -> bool:
        ...

class Batch:

    def __init__(self, tokens: typing.SupportsInt | typing.SupportsIndex, top_k: typing.SupportsInt | typing.SupportsIndex, x: tuple[typing.SupportsInt | typing.SupportsIndex, DType, typing.SupportsInt | typing.SupportsIndex], ids: typing.SupportsInt | typing.SupportsIndex, ids_are_64_bit: bool, ids_stride: typing.SupportsInt | typing.SupportsIndex, weights: tuple[typing.SupportsInt | typing.SupportsIndex, DType, typing.SupportsInt | typing.SupportsIndex], out: tuple[typing.SupportsInt | typing.SupportsIndex, DType, typing.SupportsInt | typing.SupportsIndex]) -> None:
        ...

class Engine:

    def __init__(self, cpu_threads: typing.SupportsInt | typing.SupportsIndex=0, isa: str='', gpu: GpuOptions | None=None) -> None:
        ...

    def add_blobs(self, hidden: typing.SupportsInt | typing.SupportsIndex, inter: typing.SupportsInt | typing.SupportsIndex, top_k: typing.SupportsInt | typing.SupportsIndex, format: WeightFormat, activation: ActivationSpec, bias: bool, blobs: typing.Annotated[numpy.typing.ArrayLike, numpy.uint64], owner: typing.Any) -> Layer:
        ...

    def add_layer(self, hidden: typing.SupportsInt | typing.SupportsIndex, inter: typing.SupportsInt | typing.SupportsIndex, top_k: typing.SupportsInt | typing.SupportsIndex, format: WeightFormat, activation: ActivationSpec, gate: typing.Annotated[numpy.typing.ArrayLike, numpy.uint64], up: typing.Annotated[numpy.typing.ArrayLike, numpy.uint64], down: typing.Annotated[numpy.typing.ArrayLike, numpy.uint64], gate_up_strides: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex], down_strides: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex], gate_bias: typing.Annotated[numpy.typing.ArrayLike, numpy.float32] | None, up_bias: typing.Annotated[numpy.typing.ArrayLike, numpy.float32] | None, down_bias: typing.Annotated[numpy.typing.ArrayLike, numpy.float32] | None, owner: typing.Any) -> Layer:
        ...

    def attend_prompt(self, sizes: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], 'FixedSize(7)'], type: DType, queries: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex], keys: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex], values: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex], out: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex], scale: typing.SupportsFloat | typing.SupportsIndex, mask: typing.SupportsInt | typing.SupportsIndex, mask_strides: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex], added: DType | None, sinks: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    def attention(self, layer: AttentionView, batch: AttentionBatch) -> None:
        ...

    def close(self) -> None:
        ...

    def cost(self, layer: Layer) -> policy.CostModel:
        ...

    def decode(self, stack: DecoderStack, sequences: typing.SupportsInt | typing.SupportsIndex, tokens: typing.SupportsInt | typing.SupportsIndex, x: tuple[typing.SupportsInt | typing.SupportsIndex, DType, typing.SupportsInt | typing.SupportsIndex], out: tuple[typing.SupportsInt | typing.SupportsIndex, DType, typing.SupportsInt | typing.SupportsIndex], kept: typing.SupportsInt | typing.SupportsIndex, cos: typing.SupportsInt | typing.SupportsIndex, sin: typing.SupportsInt | typing.SupportsIndex, rotated: typing.SupportsInt | typing.SupportsIndex, caches: Caches, past: typing.SupportsInt | typing.SupportsIndex, mask: typing.SupportsInt | typing.SupportsIndex, mask_strides: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex], added: DType | None=None) -> None:
        ...

    def decode_next(self, stack: DecoderStack, tables: TokenTables, token: typing.SupportsInt | typing.SupportsIndex, caches: Caches, past: typing.SupportsInt | typing.SupportsIndex, logits: typing.SupportsInt | typing.SupportsIndex) -> int:
        ...

    def forward(self, layer: Layer, batch: Batch) -> None:
        ...

    def hint(self, layer: Layer, ids: typing.Annotated[numpy.typing.ArrayLike, numpy.int64], distance: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    def keep(self, layer: Layer, experts: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], kept: bool) -> None:
        ...

    def linear(self, layer: LinearView, tokens: typing.SupportsInt | typing.SupportsIndex, x: tuple[typing.SupportsInt | typing.SupportsIndex, DType, typing.SupportsInt | typing.SupportsIndex], out: tuple[typing.SupportsInt | typing.SupportsIndex, DType, typing.SupportsInt | typing.SupportsIndex]) -> None:
        ...

    def load_kernels(self, compiled: CompiledKernels) -> ExpertKernels:
        ...

    def rms_norm(self, weight: typing.SupportsInt | typing.SupportsIndex, width: typing.SupportsInt | typing.SupportsIndex, epsilon: typing.SupportsFloat | typing.SupportsIndex, rows: typing.SupportsInt | typing.SupportsIndex, x: tuple[typing.SupportsInt | typing.SupportsIndex, DType, typing.SupportsInt | typing.SupportsIndex], out: tuple[typing.SupportsInt | typing.SupportsIndex, DType, typing.SupportsInt | typing.SupportsIndex]) -> None:
        ...

    def route(self, layer: RouterView, tokens: typing.SupportsInt | typing.SupportsIndex, x: tuple[typing.SupportsInt | typing.SupportsIndex, DType, typing.SupportsInt | typing.SupportsIndex], logits: typing.SupportsInt | typing.SupportsIndex, logits_type: DType, weights: typing.SupportsInt | typing.SupportsIndex, ids: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    def set_cost(self, layer: Layer, cost: policy.CostModel) -> None:
        ...

    def set_kernels(self, layer: Layer, kernels: ExpertKernels) -> None:
        ...

    def start(self) -> None:
        ...

    def stats(self) -> dict:
        ...

    def submit(self, layer: Layer, batch: Batch, arrays: typing.Any, stream: typing.SupportsInt | typing.SupportsIndex | None=None) -> Job:
        ...

    def synchronize(self) -> None:
        ...

    def time_copies(self, layer: Layer) -> list[tuple[int, float]]:
        ...

    def time_cpu(self, layer: Layer, x_type: DType) -> list[tuple[int, int, float, float]]:
        ...

    def time_gpu(self, layer: Layer, x_type: DType) -> list[tuple[int, int, float, float]]:
        ...

    def warm_start(self, layer: Layer, shares: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex]) -> None:
        ...

    def write_trace(self, path: str) -> None:
        ...

    @property
    def closed(self) -> bool:
        ...

    @property
    def gpu_architecture(self) -> int | None:
        ...

    @property
    def gpu_name(self) -> str | None:
        ...

    @property
    def why_not_pinned(self) -> str:
        ...

class MatrixLayout:
    """
    Where everything lies in a quantised matrix.
    """

    def __init__(self, format: WeightFormat, rows: typing.SupportsInt | typing.SupportsIndex, columns: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    @property
    def bytes(self) -> int:
        ...

    @property
    def format(self) -> WeightFormat:
        ...

    @property
    def matrix(self) -> BlobMatrix:
        ...

class LinearView:

    @typing.overload
    def __init__(self, weight: typing.SupportsInt | typing.SupportsIndex, weights_type: DType, outputs: typing.SupportsInt | typing.SupportsIndex, inputs: typing.SupportsInt | typing.SupportsIndex, strides: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex], bias: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    @typing.overload
    def __init__(self, layout: MatrixLayout, blob: typing.SupportsInt | typing.SupportsIndex, bias: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

class HeadNorm:
    """
    Members:
    
      none
    
      head
    
      row
    """
    __members__: typing.ClassVar[dict[str, HeadNorm]]
    head: typing.ClassVar[HeadNorm]
    none: typing.ClassVar[HeadNorm]
    row: typing.ClassVar[HeadNorm]

    @typing.overload
    def __eq__(self, other: HeadNorm) -> bool:
        ...

    @typing.overload
    def __eq__(self, other: typing.Any) -> bool:
        ...

    def __getstate__(self) -> int:
        ...

    def __hash__(self) -> int:
        ...

    def __index__(self) -> int:
        ...

    def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    def __int__(self) -> int:
        ...

    @typing.overload
    def __ne__(self, other: HeadNorm) -> bool:
        ...

    @typing.overload
    def __ne__(self, other: typing.Any) -> bool:
        ...

    def __repr__(self) -> str:
        ...

    def __setstate__(self, state: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    def __str__(self) -> str:
        ...

    @property
    def name(self) -> str:
        ...

    @property
    def value(self) -> int:
        ...

class Pairs:
    """
    Members:
    
      halves
    
      neighbours
    
      neighbours_to_halves
    """
    __members__: typing.ClassVar[dict[str, Pairs]]
    halves: typing.ClassVar[Pairs]
    neighbours: typing.ClassVar[Pairs]
    neighbours_to_halves: typing.ClassVar[Pairs]

    @typing.overload
    def __eq__(self, other: Pairs) -> bool:
        ...

    @typing.overload
    def __eq__(self, other: typing.Any) -> bool:
        ...

    def __getstate__(self) -> int:
        ...

    def __hash__(self) -> int:
        ...

    def __index__(self) -> int:
        ...

    def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    def __int__(self) -> int:
        ...

    @typing.overload
    def __ne__(self, other: Pairs) -> bool:
        ...

    @typing.overload
    def __ne__(self, other: typing.Any) -> bool:
        ...

    def __repr__(self) -> str:
        ...

    def __setstate__(self, state: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    def __str__(self) -> str:
        ...

    @property
    def name(self) -> str:
        ...

    @property
    def value(self) -> int:
        ...

class AttentionView:

    @typing.overload
    def __init__(self, query: LinearView, key: LinearView, value: LinearView, output: LinearView, heads: typing.SupportsInt | typing.SupportsIndex, kv_heads: typing.SupportsInt | typing.SupportsIndex, head_dim: typing.SupportsInt | typing.SupportsIndex, scale: typing.SupportsFloat | typing.SupportsIndex, norm: HeadNorm, query_norm: typing.SupportsInt | typing.SupportsIndex, key_norm: typing.SupportsInt | typing.SupportsIndex, epsilon: typing.SupportsFloat | typing.SupportsIndex, clip: typing.SupportsFloat | typing.SupportsIndex, sinks: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    @typing.overload
    def __init__(self, query: LinearView, query_up: LinearView | None, latent: LinearView, expand: LinearView, output: LinearView, heads: typing.SupportsInt | typing.SupportsIndex, head_dim: typing.SupportsInt | typing.SupportsIndex, rank: typing.SupportsInt | typing.SupportsIndex, rotated: typing.SupportsInt | typing.SupportsIndex, value_dim: typing.SupportsInt | typing.SupportsIndex, pairs: Pairs, scale: typing.SupportsFloat | typing.SupportsIndex, query_norm: typing.SupportsInt | typing.SupportsIndex, latent_norm: typing.SupportsInt | typing.SupportsIndex, epsilon: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...

class AttentionBatch:

    def __init__(self, sequences: typing.SupportsInt | typing.SupportsIndex, tokens: typing.SupportsInt | typing.SupportsIndex, x: tuple[typing.SupportsInt | typing.SupportsIndex, DType, typing.SupportsInt | typing.SupportsIndex], out: tuple[typing.SupportsInt | typing.SupportsIndex, DType, typing.SupportsInt | typing.SupportsIndex], cos: typing.SupportsInt | typing.SupportsIndex, sin: typing.SupportsInt | typing.SupportsIndex, rotated: typing.SupportsInt | typing.SupportsIndex, keys: typing.SupportsInt | typing.SupportsIndex, values: typing.SupportsInt | typing.SupportsIndex, cache_type: DType, cache_strides: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex], past: typing.SupportsInt | typing.SupportsIndex, mask: typing.SupportsInt | typing.SupportsIndex, mask_strides: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex], added: DType | None=None) -> None:
        ...

class Scoring:
    """
    Members:
    
      softmax
    
      sigmoid
    """
    __members__: typing.ClassVar[dict[str, Scoring]]
    sigmoid: typing.ClassVar[Scoring]
    softmax: typing.ClassVar[Scoring]

    @typing.overload
    def __eq__(self, other: Scoring) -> bool:
        ...

    @typing.overload
    def __eq__(self, other: typing.Any) -> bool:
        ...

    def __getstate__(self) -> int:
        ...

    def __hash__(self) -> int:
        ...

    def __index__(self) -> int:
        ...

    def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    def __int__(self) -> int:
        ...

    @typing.overload
    def __ne__(self, other: Scoring) -> bool:
        ...

    @typing.overload
    def __ne__(self, other: typing.Any) -> bool:
        ...

    def __repr__(self) -> str:
        ...

    def __setstate__(self, state: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    def __str__(self) -> str:
        ...

    @property
    def name(self) -> str:
        ...

    @property
    def value(self) -> int:
        ...

class RouterView:

    def __init__(self, gate: LinearView, top_k: typing.SupportsInt | typing.SupportsIndex, scoring: Scoring, renormalise: bool, scale: typing.SupportsFloat | typing.SupportsIndex, correction: typing.SupportsInt | typing.SupportsIndex, groups: typing.SupportsInt | typing.SupportsIndex, top_groups: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

class DecoderView:

    def __init__(self, attention_norm: typing.SupportsInt | typing.SupportsIndex, attention_epsilon: typing.SupportsFloat | typing.SupportsIndex, attention: AttentionView, expert_norm: typing.SupportsInt | typing.SupportsIndex, expert_epsilon: typing.SupportsFloat | typing.SupportsIndex, router: RouterView) -> None:
        ...

class KeyValues:

    def __init__(self, keys: typing.SupportsInt | typing.SupportsIndex, values: typing.SupportsInt | typing.SupportsIndex, type: DType, strides: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex]) -> None:
        ...

class Caches:

    def __init__(self, layers: collections.abc.Sequence[KeyValues]) -> None:
        ...

class TokenTables:

    def __init__(self, embedding: typing.SupportsInt | typing.SupportsIndex, type: DType, cos: typing.SupportsInt | typing.SupportsIndex, sin: typing.SupportsInt | typing.SupportsIndex, width: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

class DecoderStack:

    def __init__(self, experts: collections.abc.Sequence[Layer], layers: collections.abc.Sequence[DecoderView], norm: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex] | None, head: LinearView | None) -> None:
        ...

class MappedFile:
    """
    One file, mapped read-only; a read-only buffer of its bytes. CheckpointError if it cannot be mapped or is not expected_bytes long.
    """

    def __init__(self, path: str, expected_bytes: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    def prefetch(self, offset: typing.SupportsInt | typing.SupportsIndex, bytes: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        Asks the kernel to start reading these bytes into memory; does not wait.
        """

    @property
    def address(self) -> int:
        """
        Address of the first byte. Valid for as long as this object lives.
        """

    @property
    def path(self) -> str:
        ...

    @property
    def size(self) -> int:
        """
        Length in bytes.
        """

class DotType:
    """
    What the multiply-adds of a kernel multiply.
    
    Members:
    
      fp32
    
      bf16
    
      int8
    """
    __members__: typing.ClassVar[dict[str, DotType]]
    bf16: typing.ClassVar[DotType]
    fp32: typing.ClassVar[DotType]
    int8: typing.ClassVar[DotType]

    @typing.overload
    def __eq__(self, other: DotType) -> bool:
        ...

    @typing.overload
    def __eq__(self, other: typing.Any) -> bool:
        ...

    def __getstate__(self) -> int:
        ...

    def __hash__(self) -> int:
        ...

    def __index__(self) -> int:
        ...

    def __init__(self, value: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    def __int__(self) -> int:
        ...

    @typing.overload
    def __ne__(self, other: DotType) -> bool:
        ...

    @typing.overload
    def __ne__(self, other: typing.Any) -> bool:
        ...

    def __repr__(self) -> str:
        ...

    def __setstate__(self, state: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    def __str__(self) -> str:
        ...

    @property
    def name(self) -> str:
        ...

    @property
    def value(self) -> int:
        ...

class LimitMeter:
    """
    Measures the machine's limits one slice of time a call.
    """

    def __init__(self, threads: typing.SupportsInt | typing.SupportsIndex, buffer_bytes: typing.SupportsInt | typing.SupportsIndex, isa: str='') -> None:
        ...

    def dot(self, type: DotType, seconds: typing.SupportsFloat | typing.SupportsIndex) -> float:
        """
        GFLOP/s of multiply-adds in registers.
        """

    def dot_type(self, format: WeightFormat) -> DotType:
        """
        What many tokens of bf16 with weights of a format are multiplied as.
        """

    def read(self, seconds: typing.SupportsFloat | typing.SupportsIndex) -> float:
        """
        GB/s of reading the buffer in order.
        """

    @property
    def dot_types(self) -> list[DotType]:
        ...

class CacheTable:

    def __init__(self, slots: typing.SupportsInt | typing.SupportsIndex, experts: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> None:
        ...

    def abandon(self, slot: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    def evict(self, slot: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    def freed(self, slot: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    def loaded(self, slot: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    def owner(self, slot: typing.SupportsInt | typing.SupportsIndex) -> tuple[int, int]:
        ...

    def pin(self, slot: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    def pins(self, slot: typing.SupportsInt | typing.SupportsIndex) -> int:
        ...

    def reserve(self, layer: typing.SupportsInt | typing.SupportsIndex, expert: typing.SupportsInt | typing.SupportsIndex) -> int:
        ...

    def resident(self, layer: typing.SupportsInt | typing.SupportsIndex) -> list[bool]:
        ...

    def slot_of(self, layer: typing.SupportsInt | typing.SupportsIndex, expert: typing.SupportsInt | typing.SupportsIndex) -> int:
        ...

    def state(self, slot: typing.SupportsInt | typing.SupportsIndex) -> str:
        ...

    def unpin(self, slot: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    def victim(self, values: collections.abc.Sequence[policy.CacheValues]) -> int:
        ...

    @property
    def counts(self) -> dict:
        ...

    @property
    def slots(self) -> int:
        ...

def available_isas() -> list[str]:
    """
    Rows of the kernel table that this machine can run, best first.
    """

def checksums(blobs: typing.Annotated[numpy.typing.ArrayLike, numpy.uint64], bytes: typing.SupportsInt | typing.SupportsIndex, threads: typing.SupportsInt | typing.SupportsIndex=0) -> numpy.typing.NDArray[numpy.uint64]:
    """
    Of the memory at each address, uint64 [n]. threads 0: all usable cores.
    """

def choose_isa(isa: str='') -> str:
    """
    The row that an engine would use: `isa`, or else MOERUN_ISA, or else the best. Raises ValueError.
    """

def cpu_info() -> dict:
    """
    Processor, usable cores, memory nodes, caches (bytes) and instruction sets.
    """

def measure_limits(threads: typing.SupportsInt | typing.SupportsIndex, buffer_bytes: typing.SupportsInt | typing.SupportsIndex, isa: str='', seconds: typing.SupportsFloat | typing.SupportsIndex=1.0, repeats: typing.SupportsInt | typing.SupportsIndex=9) -> dict:
    """
    Read bandwidth (GB/s) and dot-product peaks (GFLOP/s by what is multiplied), each measured for `seconds`.
    """

def openmp_runtime() -> str:
    """
    Path of the OpenMP runtime in use, or why there is none.
    """

def probe_gpu() -> dict:
    """
    CUDA devices, or the reason why there are none.
    """

def quantise(layout: BlobLayout, dtype: DType, gate: typing.Annotated[numpy.typing.ArrayLike, numpy.uint64], up: typing.Annotated[numpy.typing.ArrayLike, numpy.uint64], down: typing.Annotated[numpy.typing.ArrayLike, numpy.uint64], gate_up_strides: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex], down_strides: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex], gate_bias: typing.Annotated[numpy.typing.ArrayLike, numpy.float32] | None, up_bias: typing.Annotated[numpy.typing.ArrayLike, numpy.float32] | None, down_bias: typing.Annotated[numpy.typing.ArrayLike, numpy.float32] | None, blobs: typing.Annotated[numpy.typing.ArrayLike, numpy.uint64], threads: typing.SupportsInt | typing.SupportsIndex=0, isa: str='') -> None:
    """
    Writes experts into the blobs at these addresses. threads 0: all usable cores.
    """

def quantise_matrix(layout: MatrixLayout, dtype: DType, weight: typing.SupportsInt | typing.SupportsIndex, strides: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex], blob: typing.SupportsInt | typing.SupportsIndex, threads: typing.SupportsInt | typing.SupportsIndex=0, isa: str='') -> None:
    """
    Writes the matrix at `weight` into the blob. threads 0: all usable cores.
    """

def read_nodes(folder: str, usable: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> list:
    """
    Memory nodes with their usable processors, from a folder laid out as /sys/devices/system/node.
    """

def set_openmp_hint(path: str) -> None:
    """
    Folder to look for an OpenMP runtime in, if none is loaded yet.
    """

def use_huge_pages(address: typing.SupportsInt | typing.SupportsIndex, bytes: typing.SupportsInt | typing.SupportsIndex) -> int:
    """
    Collapses memory into huge pages where the kernel can; returns the bytes that it did.
    """

def weight_bytes(format: WeightFormat, hidden: typing.SupportsInt | typing.SupportsIndex, inter: typing.SupportsInt | typing.SupportsIndex) -> int:
    """
    Bytes of one expert's codes, scales and zeros, without padding.
    """
