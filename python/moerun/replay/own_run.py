"""The engine's own runs as the replay takes them: a machine made of a calibration, a trace made of batches.

bench/model_check.py holds the replay's times against measured ones with these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moerun.calibration.points import Points
from moerun.policy import COPY_PRICE, CostModel
from moerun.replay.models import ModelShape
from moerun.replay.profile import Profile
from moerun.replay.systems import System
from moerun.replay.trace import DECODE, PREFILL, Trace

# What the engine does by default with calls that give no hints: no part of an expert is copied alone, and
# experts come into the cache only when a plan asks for them.
ENGINE = System(
    "engine",
    "balanced",
    "mrs",
    allow_fraction=True,
    keeps_copies=True,
    one_budget=True,
    copy_price=COPY_PRICE,
)
SHARE_STEP = 128  # kShareStep of cpu/moe_forward.h: where the engine can divide an expert


def engine_of(model: ModelShape) -> System:
    """ENGINE, dividing this model's experts where the engine can."""
    step = SHARE_STEP / model.intermediate
    return ENGINE.but(ENGINE.name, allow_fraction=step < 1, share_step=min(step, 1.0))


@dataclass(frozen=True)
class MeasuredProfile(Profile):
    """A machine whose costs were timed for one kind of expert, and a model that is nothing but experts.

    ``layer_us`` and ``layer_token_us`` per token are all that a layer takes beyond its makespan: the call,
    copies of activations and results.
    """

    measured: CostModel
    layer_token_us: float = 0.0

    def cost(self, model: ModelShape) -> CostModel:
        return self.measured

    def shared_gpu_us(self, model: ModelShape, tokens: int) -> float:
        return 0.0

    def attention_us(self, model: ModelShape, tokens: int) -> float:
        return self.layer_us + tokens * self.layer_token_us


def measured_profile(
    points: Points,
    model: ModelShape,
    layer_us: float,
    layer_token_us: float = 0.0,
    learned: CostModel | None = None,
) -> MeasuredProfile:
    """A profile from timed points; rates follow from times, to be read beside other profiles.

    ``learned``: what the engine has made of the points' cost model since (``Layer.cost``); None: itself.

    Raises
    ------
    ValueError
        The points do not determine a cost model, or lack the GPU's part.
    """
    fitted = points.fit()
    if not (points.gpu and points.copies):
        raise ValueError("only a machine with a GPU can be replayed; these points are of a CPU alone")
    cost, size, flops = learned or fitted.cost, points.expert_bytes, 2 * model.expert_params

    def rate(amount: float, us: float, unit: float) -> float:
        return amount / us / unit if us > 0 else float("inf")

    return MeasuredProfile(
        name="measured",
        bits=8 * size / model.expert_params,
        cpu_gbps=rate(size, cost.cpu_expert_us, 1e3),
        cpu_tflops=rate(flops, cost.cpu_token_us, 1e6),
        cpu_first_us=cost.cpu_first_us,
        gpu_gbps=rate(size, cost.gpu_expert_us, 1e3),
        gpu_tflops=rate(flops, cost.gpu_token_us, 1e6),
        gpu_launch_us=0.0,
        pcie_gbps=rate(1, fitted.copy_byte_us, 1e3),
        copy_fixed_us=fitted.copy_fixed_us,
        layer_us=layer_us,
        measured=cost,
        layer_token_us=layer_token_us,
    )


def trace_of(batches: Sequence[np.ndarray], num_experts: int, model: str = "own run") -> Trace:
    """The trace of steps that went through the engine.

    Parameters
    ----------
    batches
        One ``[tokens, L, k]`` of ids per step. Steps of one token are decode, others prefill.

    Scores are each token's share per expert, which is what the engine's cache goes by.
    """
    ids = np.concatenate(batches).astype(np.uint16)
    tokens, layers, top_k = ids.shape
    scores = np.zeros((tokens, layers, num_experts), np.float16)
    np.put_along_axis(scores, ids.astype(np.int64), np.float16(1 / top_k), axis=2)
    sizes = [len(batch) for batch in batches]
    return Trace(
        model=model,
        ids=ids,
        scores=scores,
        step=np.repeat(np.arange(len(batches)), sizes).astype(np.int32),
        phase=np.repeat([DECODE if size == 1 else PREFILL for size in sizes], sizes).astype(np.uint8),
    )
