"""Random layers for the policy tests: four models, prefill and decode, any cache, any machine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from moerun import policy

# experts, top_k
SHAPES = {
    "Mixtral-8x7B": (8, 2),
    "DeepSeek-V2-Lite": (64, 6),
    "Qwen2-57B-A14B": (64, 8),
    "Qwen3-30B-A3B": (128, 8),
}


# May one expert be divided, and if it is not resident, is it copied whole or in part?
DIVIDING = ("never", "whole copies", "partial copy")


@dataclass(frozen=True)
class Instance:
    loads: np.ndarray  # [E] int32
    resident: np.ndarray  # [E] bool
    cost: policy.CostModel
    shared_gpu_us: float

    def split(
        self, method: str, dividing: str = "whole copies", copy_price: float = 0.0, share_step: float = 0.0
    ) -> policy.Plan:
        """A plan; ``dividing`` is one of DIVIDING."""
        return policy.split(
            self.loads,
            self.resident,
            self.cost,
            method,
            self.shared_gpu_us,
            allow_fraction=dividing != "never",
            partial_copy=dividing == "partial copy",
            copy_price=copy_price,
            share_step=share_step,
        )


def random_cost(rng: np.random.Generator) -> policy.CostModel:
    """Experts from 0.1 to 3 ms on the CPU, 10 to 500 us on the GPU, copies of 30 us to 3 ms."""
    return policy.CostModel(
        cpu_first_us=rng.choice([0, 50, 800]) * rng.random(),
        cpu_expert_us=1000 * 10 ** rng.uniform(-1, 0.5),
        cpu_token_us=10 ** rng.uniform(-1, 2.5),
        gpu_expert_us=10 ** rng.uniform(1, 2.7),
        gpu_token_us=10 ** rng.uniform(-2, 1.5),
        copy_us=10 ** rng.uniform(1.5, 3.5),
    )


def random_instance(rng: np.random.Generator, shape: str, tokens: int) -> Instance:
    num_experts, top_k = SHAPES[shape]
    popularity = np.log(rng.gamma(rng.choice([0.2, 0.5, 1, 3]), size=num_experts) + 1e-9)
    ids = np.argsort(-(popularity + rng.gumbel(size=(tokens, num_experts))), axis=1)[:, :top_k]
    cached_share = rng.choice([0, 0.25, 0.5, 0.75, 1, rng.random()])
    return Instance(
        loads=np.bincount(ids.ravel(), minlength=num_experts).astype(np.int32),
        resident=rng.random(num_experts) < cached_share,
        cost=random_cost(rng),
        shared_gpu_us=float(rng.choice([0, 200 * rng.random()])),
    )


def instances(max_experts: int = 20) -> st.SearchStrategy[Instance]:
    """Layers of any kind, degenerate ones included: no experts, no active ones, work that costs nothing."""
    time = st.sampled_from([0.0, 1.0, 3.0]) | st.floats(0, 1000, allow_nan=False, width=32)
    part = st.just(0.0) | st.floats(0, 100, allow_nan=False, width=32)

    def build(size: int) -> st.SearchStrategy[Instance]:
        return st.builds(
            lambda loads, resident, cost, shared: Instance(
                np.array(loads, np.int32), np.array(resident, bool), policy.CostModel(*cost), shared
            ),
            st.lists(st.integers(0, 12), min_size=size, max_size=size),
            st.lists(st.booleans(), min_size=size, max_size=size),
            st.tuples(time, time, time, time, time, time, part, part),
            time,
        )

    return st.integers(0, max_experts).flatmap(build)
