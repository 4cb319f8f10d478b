"""
Pure policies: cost model, split, cache values, prefetch.
"""
from __future__ import annotations
import collections.abc
import numpy
import numpy.typing
import typing
__all__: list[str] = ['CACHE_POLICIES', 'COPY_PRICE', 'CacheValues', 'Calibration', 'CostModel', 'MAX_DISTANCE', 'METHODS', 'MrsScore', 'Plan', 'PrefetchConfidence', 'Splitter', 'TUNED_ALPHA', 'fit', 'hybrimoe_order', 'prefetch', 'refresh']

class CostModel:

    def __init__(self, cpu_first_us: typing.SupportsFloat | typing.SupportsIndex, cpu_expert_us: typing.SupportsFloat | typing.SupportsIndex, cpu_token_us: typing.SupportsFloat | typing.SupportsIndex, gpu_expert_us: typing.SupportsFloat | typing.SupportsIndex, gpu_token_us: typing.SupportsFloat | typing.SupportsIndex, copy_us: typing.SupportsFloat | typing.SupportsIndex, cpu_part_us: typing.SupportsFloat | typing.SupportsIndex=0.0, gpu_part_us: typing.SupportsFloat | typing.SupportsIndex=0.0) -> None:
        ...

    def __repr__(self) -> str:
        ...

    @property
    def copy_us(self) -> float:
        ...

    @property
    def cpu_expert_us(self) -> float:
        ...

    @property
    def cpu_first_us(self) -> float:
        ...

    @property
    def cpu_part_us(self) -> float:
        ...

    @property
    def cpu_token_us(self) -> float:
        ...

    @property
    def gpu_expert_us(self) -> float:
        ...

    @property
    def gpu_part_us(self) -> float:
        ...

    @property
    def gpu_token_us(self) -> float:
        ...

class Calibration:

    @property
    def copy_byte_us(self) -> float:
        ...

    @property
    def copy_fixed_us(self) -> float:
        ...

    @property
    def copy_residual(self) -> float:
        ...

    @property
    def cost(self) -> CostModel:
        ...

    @property
    def cpu_residual(self) -> float:
        ...

    @property
    def gpu_residual(self) -> float:
        ...

class Plan:

    @property
    def copy(self) -> numpy.typing.NDArray[numpy.int32]:
        ...

    @property
    def copy_fraction(self) -> numpy.typing.NDArray[numpy.float64]:
        ...

    @property
    def copy_intervals(self) -> list[tuple[int, float, float]]:
        ...

    @property
    def cpu(self) -> numpy.typing.NDArray[numpy.int32]:
        ...

    @property
    def cpu_fraction(self) -> numpy.typing.NDArray[numpy.float64]:
        ...

    @property
    def cpu_intervals(self) -> list[tuple[int, float, float]]:
        ...

    @property
    def gpu(self) -> numpy.typing.NDArray[numpy.int32]:
        ...

    @property
    def gpu_intervals(self) -> list[tuple[int, float, float]]:
        ...

    @property
    def makespan_us(self) -> float:
        ...

class Splitter:

    def __init__(self) -> None:
        ...

    def split(self, loads: typing.Any, resident: typing.Any, cost: CostModel, method: str='balanced', shared_gpu_us: typing.SupportsFloat | typing.SupportsIndex=0.0, allow_fraction: bool=True, prefill: bool | None=None, partial_copy: bool=False, copy_price: typing.SupportsFloat | typing.SupportsIndex=0.0, share_step: typing.SupportsFloat | typing.SupportsIndex=0.0) -> Plan:
        ...

class MrsScore:

    def __init__(self, num_experts: typing.SupportsInt | typing.SupportsIndex, top_k: typing.SupportsInt | typing.SupportsIndex, alpha: typing.SupportsFloat | typing.SupportsIndex=0.5, score_top_p: typing.SupportsInt | typing.SupportsIndex | None=None) -> None:
        ...

    def update(self, scores: typing.Annotated[numpy.typing.ArrayLike, numpy.float32]) -> None:
        ...

    @property
    def values(self) -> numpy.typing.NDArray[numpy.float64]:
        ...

class CacheValues:

    def __init__(self, policy: str, num_experts: typing.SupportsInt | typing.SupportsIndex, top_k: typing.SupportsInt | typing.SupportsIndex, alpha: typing.SupportsFloat | typing.SupportsIndex=0.1, score_top_p: typing.SupportsInt | typing.SupportsIndex | None=None) -> None:
        ...

    def observe(self, loads: typing.Any, scores: typing.Annotated[numpy.typing.ArrayLike, numpy.float32] | None=None) -> None:
        ...

    def start(self, shares: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex]) -> None:
        ...

    def victim(self, resident: typing.Any, pinned: typing.Any) -> int:
        ...

    @property
    def values(self) -> numpy.typing.NDArray[numpy.float64]:
        ...

class PrefetchConfidence:

    def __init__(self, ranks: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...

    def observe(self, distance: typing.SupportsInt | typing.SupportsIndex, rank: typing.SupportsInt | typing.SupportsIndex, used: bool) -> None:
        ...

    def value(self, distance: typing.SupportsInt | typing.SupportsIndex, rank: typing.SupportsInt | typing.SupportsIndex) -> float:
        ...

def fit(cpu: collections.abc.Sequence[tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex]], gpu: collections.abc.Sequence[tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex]], copies: collections.abc.Sequence[tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex]], expert_bytes: typing.SupportsInt | typing.SupportsIndex) -> Calibration:
    ...

def hybrimoe_order(loads: typing.Any, resident: typing.Any, cost: CostModel, shared_gpu_us: typing.SupportsFloat | typing.SupportsIndex=0.0) -> list[tuple[str, int]]:
    ...

def prefetch(forecasts: collections.abc.Sequence[tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex, typing.Any, typing.Annotated[numpy.typing.ArrayLike, numpy.float64], typing.Any, typing.Annotated[numpy.typing.ArrayLike, numpy.float64], collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex]]], cost: CostModel, shared_gpu_us: typing.SupportsFloat | typing.SupportsIndex=0.0, method: str='balanced', pcie_free_us: typing.SupportsFloat | typing.SupportsIndex=0.0, chunk_us: typing.SupportsFloat | typing.SupportsIndex=0.0, impact: bool=True) -> list[tuple[int, int, int, float]]:
    ...

def refresh(cost: CostModel, resource: str, planned_us: typing.SupportsFloat | typing.SupportsIndex, observed_us: typing.SupportsFloat | typing.SupportsIndex, rate: typing.SupportsFloat | typing.SupportsIndex) -> CostModel:
    ...
CACHE_POLICIES: tuple = ('lru', 'lfu', 'recent', 'mrs')
COPY_PRICE: float = 0.2
MAX_DISTANCE: int = 3
METHODS: tuple = ('hybrimoe', 'balanced', 'static', 'ondemand', 'layerwise', 'cpu', 'gpu', 'exact')
TUNED_ALPHA: float = 0.1
