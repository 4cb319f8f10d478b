"""The scheduling policies as functions: values in, plan out. The same C++ code plans in engine and replay.

Sources: HybriMoE (arXiv 2504.05897) for the cost model, the split "hybrimoe", MRS and prefetch; "balanced" is
ours, its bound is proved in src/policy/balanced.h.
"""

from __future__ import annotations

from numpy.typing import ArrayLike

from ._core import policy as _policy

METHODS: tuple[str, ...] = _policy.METHODS
CACHE_POLICIES: tuple[str, ...] = _policy.CACHE_POLICIES

CostModel = _policy.CostModel
Calibration = _policy.Calibration
Plan = _policy.Plan
Splitter = _policy.Splitter
MrsScore = _policy.MrsScore
CacheValues = _policy.CacheValues
PrefetchConfidence = _policy.PrefetchConfidence
MAX_DISTANCE: int = _policy.MAX_DISTANCE
fit = _policy.fit
refresh = _policy.refresh
hybrimoe_order = _policy.hybrimoe_order
prefetch = _policy.prefetch


def split(
    loads: ArrayLike,
    resident: ArrayLike,
    cost: CostModel,
    method: str = "balanced",
    shared_gpu_us: float = 0.0,
    allow_fraction: bool = True,
    prefill: bool | None = None,
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

    Returns
    -------
    Plan
        ``cpu``, ``gpu``, ``copy`` (ids in order; copied experts are in ``gpu`` too), ``cpu_fraction`` beside
        ``cpu`` (1.0, or the share of the one divided expert, which is in ``gpu`` too), ``makespan_us``, and
        ``cpu_intervals``, ``gpu_intervals``, ``copy_intervals``: lists of (id, begin_us, end_us).

    Raises
    ------
    ValueError
        Arrays that differ in length or are not 1-D, a negative load, an unknown method, a negative time.
    TypeError
        ``loads`` that are not integers.
    """
    return Splitter().split(loads, resident, cost, method, shared_gpu_us, allow_fraction, prefill)
