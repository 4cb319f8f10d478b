"""What bench/gpu times: its steps give what its reference in plain torch does, and a wrong weight is noticed.

In Triton's interpreter, on small layers.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.gpu.blobs import random_blobs
from bench.gpu.expert_step import TOLERANCE, choose_regime, error_of, expert_step, reference
from bench.shapes import Shape
from bench.workload import batches
from moerun.kernels.contract import KernelShape
from moerun.kernels.layout import layer_of
from moerun.kernels.tiles import regimes

SHAPE = Shape("small", 4, 2, 128, 64)
BIASED = Shape("small, biased", 4, 2, 160, 64, activation="swiglu_oai", bias=True)
MULTIPROCESSORS = 132


def kernel_shape(shape: Shape, weight_format: str) -> KernelShape:
    sizes = (shape.hidden_size, shape.intermediate_size, shape.top_k)
    return KernelShape(*sizes, weight_format, "bf16", shape.activation, shape.bias)


def step_error(shape: Shape, weight_format: str, tokens: int, damaged: bool = False) -> tuple[str, float]:
    """The regime and the error of a step, where the interpreter is on. `damaged`: with another's codes."""
    kernels = kernel_shape(shape, weight_format)
    layer = layer_of(kernels, 90)
    blobs = random_blobs(layer, shape.num_experts, "cpu")
    batch = batches(shape, "bf16", tokens, "uniform", 1)[0]
    expected = reference(shape.spec, layer, blobs, batch)
    if damaged:
        blobs[int(batch.ids[0, 0])] = blobs[int(batch.ids[0, 1])]
    step = expert_step(layer, regimes(kernels, 90), blobs, batch, shape.num_experts, MULTIPROCESSORS)
    step.poison()
    return step.regime.name, error_of(step.run(), expected)


@pytest.mark.parametrize(
    ("shape", "weight_format", "tokens", "regime"),
    [
        (SHAPE, "bf16", 1, "pair"),
        (SHAPE, "int8", 3, "few_split"),
        (SHAPE, "mxfp4", 3, "few_split"),
        (BIASED, "int4_g32", 3, "few_split"),
        (BIASED, "fp8_b128", 40, "some"),
    ],
)
def test_steps_give_what_the_reference_does(
    interpreter_process: ProcessPoolExecutor, shape: Shape, weight_format: str, tokens: int, regime: str
) -> None:
    chosen, error = interpreter_process.submit(step_error, shape, weight_format, tokens).result()
    assert chosen == regime
    assert error < TOLERANCE


def test_a_wrong_weight_is_noticed(interpreter_process: ProcessPoolExecutor) -> None:
    _, error = interpreter_process.submit(step_error, SHAPE, "bf16", 1, damaged=True).result()
    assert error > 10 * TOLERANCE


def test_nan_is_an_infinite_error() -> None:
    expected = torch.ones(3, 5)
    out = expected.clone()
    assert error_of(out, expected) == 0
    out[1, 2] = float("nan")
    assert error_of(out, expected) == float("inf")


@given(counts=st.lists(st.integers(0, 300), min_size=1, max_size=128), multiprocessors=st.integers(1, 200))
def test_the_regime_is_the_one_that_the_contract_asks_for(counts: list[int], multiprocessors: int) -> None:
    known = regimes(kernel_shape(SHAPE, "bf16"), 90)
    chosen = choose_regime(known, np.array(counts), 768, multiprocessors)
    tokens = chosen.gate_up.tokens
    smaller = [regime.gate_up.tokens for regime in known if regime.gate_up.tokens < tokens]
    assert all(size < max(counts) for size in smaller)
    assert tokens >= max(counts) or chosen == known[-1]
    programs = sum(-(-count // tokens) for count in counts) * -(-768 // chosen.gate_up.rows)
    has_split = any(r.gate_up.split > 1 for r in known if r.gate_up.tokens == tokens)
    assert (chosen.gate_up.split > 1) == (has_split and programs < multiprocessors)
