"""Routers on every instruction set: logits against float64, and choices against moerun.routing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_linear import check

from moerun import Engine, _core, routing
from moerun.dense import Router
from moerun.dense.router import Routing
from oracle import U

TYPES = (
    (torch.float32, torch.float32),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.bfloat16),
)
# exp or a sigmoid, a sum over experts, divisions and products, here and in torch
WEIGHT_ROUNDINGS = 2 * (16 + 64)


@pytest.fixture(scope="module", params=_core.available_isas())
def engine_on(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(isa=request.param, cpu_threads=2) as engine:
        yield engine


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(cpu_threads=2) as engine:
        yield engine


@settings(max_examples=50, deadline=None)
@given(
    groups=st.integers(1, 6),
    size=st.integers(1, 12),
    tokens=st.integers(1, 6),
    scoring=st.sampled_from(("softmax", "sigmoid")),
    renormalise=st.booleans(),
    scale=st.sampled_from((1.0, 2.5)),
    data=st.data(),
)
def test_chooses_as_moerun_routing(
    engine: Engine,
    groups: int,
    size: int,
    tokens: int,
    scoring: str,
    renormalise: bool,
    scale: float,
    data: st.DataObject,
) -> None:
    """Logits are given by an identity matrix, far enough apart for roundings not to change the order."""
    experts = groups * size
    top_groups = data.draw(st.integers(1, groups))
    top_k = data.draw(st.integers(1, top_groups * size))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**16)))
    logits = torch.stack([torch.randperm(experts, generator=generator) for _ in range(tokens)]) * 0.07 - 1.5
    correction = torch.randn(experts, generator=generator) if scoring == "sigmoid" else None
    grouped = scoring == "sigmoid" or groups > 1
    router = Router(
        engine,
        torch.eye(experts),
        top_k,
        scoring=scoring,
        renormalise=renormalise and not (scoring == "softmax" and groups > 1),
        scale=scale if grouped else 1.0,
        correction=correction,
        groups=groups,
        top_groups=top_groups,
    )
    got = router.forward(logits)
    if correction is not None:
        want = routing.grouped_sigmoid_topk(
            logits,
            top_k,
            correction_bias=correction,
            num_groups=groups,
            groups_kept=top_groups,
            renormalize=renormalise,
            scale=scale,
        )
    elif groups > 1:
        want = routing.grouped_softmax_topk(
            logits, top_k, num_groups=groups, groups_kept=top_groups, scale=scale
        )
    else:
        want = routing.softmax_topk(logits, top_k, renormalize=renormalise)
    assert torch.equal(got.logits, logits)
    assert torch.equal(got.ids, want.ids)
    assert got.weights.dtype == torch.float32
    torch.testing.assert_close(got.weights, want.weights, rtol=WEIGHT_ROUNDINGS * U, atol=0)


@pytest.mark.parametrize(("weight_type", "x_type"), TYPES)
@pytest.mark.parametrize(("experts", "hidden"), [(6, 33), (300, 64)])
def test_logits_equal_float64(
    engine_on: Engine, experts: int, hidden: int, weight_type: torch.dtype, x_type: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(experts)
    weight = (torch.randn(experts, hidden, generator=generator) / hidden**0.5).to(weight_type)
    bias = torch.randn(experts, generator=generator).to(weight_type)
    for tokens in (1, 20):
        x = torch.randn(tokens, hidden, generator=generator).to(x_type)
        rounded = Router(engine_on, weight, 4, bias=bias).forward(x)
        exact = Router(engine_on, weight, 4, bias=bias, float32_logits=True).forward(x)
        assert rounded.logits.dtype == x_type
        assert exact.logits.dtype == torch.float32
        check(rounded.logits, x, weight, bias)
        check(exact.logits, x, weight, bias)
        for got in (rounded, exact):
            # Chosen by the logits that are returned: of several experts with one logit, any may be torch's.
            chosen = got.logits.float().gather(1, got.ids)
            assert torch.equal(chosen, got.logits.float().topk(4).values)
            torch.testing.assert_close(
                got.weights, got.logits.double().softmax(-1).float().gather(1, got.ids), rtol=1e-5, atol=0
            )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=4, max_size=40), st.integers(1, 4))
def test_equal_scores_go_to_the_smaller_id(engine: Engine, levels: list[int], top_k: int) -> None:
    logits = torch.tensor([levels], dtype=torch.float32)
    got = Router(engine, torch.eye(len(levels)), top_k).forward(logits)
    assert got.ids[0].tolist() == sorted(range(len(levels)), key=lambda e: (-levels[e], e))[:top_k]


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(
        st.sampled_from((float("nan"), float("inf"), -float("inf"), 0.0, 1.0, 3e38, -3e38)),
        min_size=8,
        max_size=8,
    ),
    corrected=st.booleans(),
    scoring=st.sampled_from(("softmax", "sigmoid")),
    groups=st.sampled_from((1, 4)),
)
def test_ids_are_valid_whatever_the_logits_are(
    engine: Engine, logits: list[float], corrected: bool, scoring: str, groups: int
) -> None:
    """And different, so that no expert is asked twice for a token."""
    correction = torch.tensor([-torch.inf, torch.nan, 3e38, 0.0, -3e38, -torch.inf, 0.0, 1.0])
    with_bias = Router(
        engine,
        torch.zeros(8, 4),
        3,
        bias=torch.tensor(logits),
        scoring=scoring,
        correction=correction if corrected else None,
        groups=groups,
        top_groups=min(2, groups),
    )
    for row in with_bias.forward(torch.zeros(3, 4)).ids.tolist():
        assert len(set(row)) == 3
        assert all(0 <= e < 8 for e in row)


def test_a_number_is_chosen_before_nan(engine: Engine) -> None:
    bias = torch.tensor([torch.nan, 1.0, torch.nan, 3.0])
    got = Router(engine, torch.zeros(4, 4), 3, bias=bias, scoring="sigmoid").forward(torch.zeros(1, 4))
    assert got.ids[0].tolist() == [3, 1, 0]


def test_threads_do_not_change_the_choice() -> None:
    weight, x = torch.randn(60, 64), torch.randn(50, 64)
    results: list[Routing] = []
    for threads in (1, 2, 3):
        with Engine(cpu_threads=threads) as engine:
            results.append(Router(engine, weight, 6, renormalise=True).forward(x))
    for result in results:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_kinds_and_shapes_of_x(engine: Engine) -> None:
    router = Router(engine, torch.randn(6, 8), 2)
    assert [a.shape for a in router.forward(torch.randn(0, 8))] == [(0, 6), (0, 2), (0, 2)]
    x = torch.randn(5, 16)[:, ::2]
    of_torch, of_numpy = router.forward(x), router.forward(x.numpy())
    for a, b in zip(of_torch, of_numpy, strict=True):
        assert torch.equal(a, torch.from_numpy(b))


def test_refuses_what_does_not_fit() -> None:
    with Engine(cpu_threads=1) as engine:
        weight = torch.randn(6, 8)
        with pytest.raises(ValueError, match="scoring must be 'softmax' or 'sigmoid', got 'tanh'"):
            Router(engine, weight, 2, scoring="tanh")
        with pytest.raises(ValueError, match=r"correction must be \[6\], got \[5\]"):
            Router(engine, weight, 2, correction=torch.ones(5))
        for top_k, groups, top_groups in ((0, 1, 1), (7, 1, 1), (2, 4, 2), (3, 3, 1), (2, 3, 4), (2, 0, 0)):
            with pytest.raises(ValueError, match="a router over 6 experts"):
                Router(engine, weight, top_k, groups=groups, top_groups=top_groups)
        router = Router(engine, weight, 2)
        with pytest.raises(ValueError, match=r"x must be \[tokens, 8\], got \[3, 7\]"):
            router.forward(torch.randn(3, 7))
        with pytest.raises(ValueError, match=r"x must be \[tokens, 8\]"):
            router.forward(torch.randn(8))
        with pytest.raises(ValueError, match="float32, float16 or bfloat16"):
            router.forward(torch.ones(3, 8, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="closed"):
        router.forward(torch.randn(3, 8))
