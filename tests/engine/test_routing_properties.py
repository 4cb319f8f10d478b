"""However tokens and experts are arranged, every token gets the same sum."""

from __future__ import annotations

import functools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import expert_layers
import moerun
import oracle
from oracle import Experts

NUM_EXPERTS, HIDDEN = 6, 20


@functools.cache
def layer() -> tuple[moerun.Layer, Experts]:
    experts = expert_layers.random_experts(NUM_EXPERTS, HIDDEN, 9, bias=True, seed=41)
    engine = moerun.Engine(cpu_threads=2)
    return engine.add_layer(expert_layers.spec_of(experts), expert_layers.tensors_of(experts)), experts


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Up to 40 tokens with up to 8 ids each: any ids, also out of range and repeated; weights of any sign."""
    tokens, top_k = draw(st.integers(0, 40)), draw(st.integers(0, 8))
    ids = draw(arrays.arrays("int64", (tokens, top_k), elements=st.integers(-2, NUM_EXPERTS + 1)))
    weights = draw(arrays.arrays("float32", (tokens, top_k), elements=st.floats(-2, 2, width=32)))
    x = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(draw(st.integers(0, 9))))
    return x, torch.from_numpy(ids), torch.from_numpy(weights)


@settings(max_examples=60, deadline=None)
@given(batches())
def test_any_ids_equal_the_oracle(batch) -> None:
    runs, experts = layer()
    oracle.layer(experts, *batch).check(runs.forward(*batch))


@settings(max_examples=40, deadline=None)
@given(batches(), st.randoms(use_true_random=False))
def test_order_of_experts_within_a_token_does_not_matter(batch, random) -> None:
    x, ids, weights = batch
    columns = random.sample(range(ids.shape[1]), ids.shape[1])
    runs, experts = layer()
    oracle.layer(experts, *batch).check(runs.forward(x, ids[:, columns], weights[:, columns]))


@settings(max_examples=40, deadline=None)
@given(batches(), st.randoms(use_true_random=False))
def test_permuted_tokens_give_permuted_outputs(batch, random) -> None:
    """Within rounding: an expert's first tokens go as vectors, a small rest row by row."""
    order = random.sample(range(len(batch[0])), len(batch[0]))
    runs, experts = layer()
    inverse = torch.tensor(order, dtype=torch.int64).argsort()
    oracle.layer(experts, *batch).check(runs.forward(*(t[order] for t in batch))[inverse])


@settings(max_examples=40, deadline=None)
@given(batches(), st.integers(0, 40))
def test_a_batch_may_be_cut_anywhere(batch, cut: int) -> None:
    runs, experts = layer()
    halves = [runs.forward(*(t[part] for t in batch)) for part in (slice(None, cut), slice(cut, None))]
    oracle.layer(experts, *batch).check(torch.cat(halves))
