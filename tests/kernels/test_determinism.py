"""The same bits from run to run, and whatever the number of threads: every output is summed up by one
thread, in an order that does not depend on how many there are."""

from __future__ import annotations

import pytest
import torch

import expert_layers
from expert_layers import ALL_ISAS, DTYPES


@pytest.mark.parametrize("tokens", [1, 5, 40, 600])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("isa", ALL_ISAS)
def test_same_bits_with_1_2_and_3_threads_and_again(isa: str, dtype: str, tokens: int) -> None:
    num_experts, hidden, inter = 6, 200, 72
    experts = expert_layers.random_experts(num_experts, hidden, inter, DTYPES[dtype], bias=True, seed=21)
    batch = expert_layers.random_batch(tokens, hidden, num_experts, top_k=3, dtype=DTYPES[dtype], seed=22)
    results = []
    for threads in (1, 2, 3):
        with expert_layers.engine_for(isa, threads) as engine:
            layer = engine.add_layer(expert_layers.spec_of(experts), expert_layers.memory_of(experts, "rows"))
            results += [layer.forward(*batch) for _ in range(3)]
    assert results[0].isfinite().all()
    assert all(torch.equal(results[0], other) for other in results[1:])
