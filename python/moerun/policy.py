"""The scheduling policies as functions: values in, plan out. The same C++ code plans in engine and replay.

Sources: HybriMoE (arXiv 2504.05897) for the cost model, the split "hybrimoe", MRS and prefetch; "balanced" is
ours, its bound is proved in src/policy/balanced.h.
"""

from __future__ import annotations

from numpy.typing import ArrayLike

from moerun._core.policy import (
    CACHE_POLICIES,
    COPY_PRICE,
    MAX_DISTANCE,
    METHODS,
    TUNED_ALPHA,
    CacheValues,
    Calibration,
    CostModel,
    MrsScore,
    Plan,
    PrefetchConfidence,
    Splitter,
    fit,
    hybrimoe_order,
    prefetch,
    refresh,
)

__all__ = [
    "CACHE_POLICIES",
    "COPY_PRICE",
    "MAX_DISTANCE",
    "METHODS",
    "TUNED_ALPHA",
    "CacheValues",
    "Calibration",
    "CostModel",
    "MrsScore",
    "Plan",
    "PrefetchConfidence",
    "Splitter",
    "fit",
    "hybrimoe_order",
    "prefetch",
    "refresh",
    "split",
]


def split(
    loads: ArrayLike,
    resident: ArrayLike,
    cost: CostModel,
    method: str = "balanced",
    shared_gpu_us: float = 0.0,
    allow_fraction: bool = True,
    prefill: bool | None = None,
    partial_copy: bool = False,
    copy_price: float = 0.0,
    share_step: float = 0.0,
) -> Plan:
    """Decide which experts of a layer run on the CPU, which on the GPU, and which are copied there first.

    Parameters
    ----------
    loads
        Integer array ``[E]``: tokens per expert; 0 for those that are not active.
    resident
        Bool array ``[E]``: experts in the GPU's cache.
    cost
        What work costs, in microseconds.
    method
        "balanced" (ours), "hybrimoe" (the paper's greedy), "exact" (the optimum; slow), "static"
        (kTransformers), "ondemand" (AdapMoE), "layerwise" (llama.cpp), "cpu", "gpu".
    shared_gpu_us
        The GPU is busy with shared experts for that long.
    allow_fraction
        Whether "balanced" and "exact" may divide one expert along its intermediate dimension.
    prefill
        Only "static" asks, for it copies in prefill only. None: at least two tokens per active expert.

    partial_copy
        Of a divided expert that is not resident, copy only the part that the GPU runs, as the last copy.
        Otherwise it is copied whole.
    copy_price
        What a microsecond of PCIe is worth elsewhere, in microseconds of makespan: "balanced" minimises the
        makespan plus this times the time of its copies, the other methods do not ask.
    share_step
        "balanced" divides an expert at multiples of this share, 0..1, of its intermediate dimension; 0: at
        any.

    Returns
    -------
    Plan
        ``cpu``, ``gpu``, ``copy`` (ids in order; copied experts are in ``gpu`` too), ``cpu_fraction`` beside
        ``cpu`` (1.0, or the share of the one divided expert, which is in ``gpu`` too), ``copy_fraction``
        beside ``copy`` (1.0 but for a partial copy), ``makespan_us``, and ``cpu_intervals``,
        ``gpu_intervals``, ``copy_intervals``: lists of (id, begin_us, end_us).

    Raises
    ------
    ValueError
        Arrays that differ in length or are not 1-D, a negative load, an unknown method, a negative time.
    TypeError
        ``loads`` that are not integers.
    """
    return Splitter().split(
        loads,
        resident,
        cost,
        method,
        shared_gpu_us,
        allow_fraction,
        prefill,
        partial_copy,
        copy_price,
        share_step,
    )
