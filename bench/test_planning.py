"""Planning time of one layer, from Python (the binding and the making of the Plan included, about 2 us).

Run with `python -m pytest bench/test_planning.py`; goal: 10 us for 128 experts, 20 us for 256.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moerun import policy

# experts, top_k, tokens of the step
SHAPES = {
    "Mixtral decode": (8, 2, 1),
    "Mixtral prefill": (8, 2, 512),
    "DeepSeek-V2-Lite decode": (64, 6, 1),
    "Qwen3-30B-A3B decode": (128, 8, 1),
    "Qwen3-30B-A3B 8 tokens": (128, 8, 8),
    "Qwen3-30B-A3B prefill": (128, 8, 512),
    "256 experts, prefill": (256, 8, 512),
}
COST = policy.CostModel(
    cpu_first_us=20, cpu_expert_us=300, cpu_token_us=30, gpu_expert_us=30, gpu_token_us=1, copy_us=300
)


@pytest.mark.parametrize("method", ["hybrimoe", "balanced"])
@pytest.mark.parametrize("shape", SHAPES)
def test_plan(benchmark: Any, shape: str, method: str) -> None:
    experts, top_k, tokens = SHAPES[shape]
    rng = np.random.default_rng(0)
    popularity = np.log(rng.gamma(0.5, size=experts) + 1e-9)
    ids = np.argsort(-(popularity + rng.gumbel(size=(tokens, experts))), axis=1)[:, :top_k]
    loads = np.bincount(ids.ravel(), minlength=experts).astype(np.int32)
    resident = rng.random(experts) < 0.4
    splitter = policy.Splitter()
    benchmark(splitter.split, loads, resident, COST, method, 20.0, True, None, True)
