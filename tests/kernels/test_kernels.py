"""Every instruction set computes what the formula says: formats, activations, biases, layouts, shapes,
token counts."""

from __future__ import annotations

import functools

import pytest
import torch

import expert_layers
import oracle
from expert_layers import ACTIVATIONS, ALL_ISAS, DTYPES, ISAS_WITH_BF16_DOT, LAYOUTS, Routed
from oracle import Expected, Experts

Case = tuple[Experts, Routed]


def check(
    isa: str,
    case: Case,
    expected: Expected,
    layouts: tuple[str, ...] = LAYOUTS,
    place: expert_layers.Placement = expert_layers.anywhere,
) -> None:
    """Runs the case with the experts' memory in each layout."""
    experts, batch = case
    with expert_layers.engine_for(isa) as engine:
        for layout in layouts:
            memory = expert_layers.memory_of(experts, layout, place)
            layer = engine.add_layer(expert_layers.spec_of(experts), memory)
            try:
                expected.check(layer.forward(*batch))
            except AssertionError as error:
                raise AssertionError(f"{layout}: {error}") from None


@functools.lru_cache(maxsize=64)
def formats_case(weights: str, x: str, activation: str, bias: bool) -> Case:
    experts = expert_layers.random_experts(3, 72, 40, DTYPES[weights], activation, bias, seed=7)
    # One expert gets 2 tokens, another 9, another 13: rows, a panel, a panel with two tiles.
    batch = expert_layers.random_batch(13, 72, 3, top_k=2, dtype=DTYPES[x], seed=8)
    ids = torch.tensor([[2, 0] if t < 2 else [2, 1] if t < 11 else [-1, 2] for t in range(13)])
    return experts, Routed(batch.x, ids, batch.weights)


@functools.lru_cache(maxsize=256)
def formats_expected(weights: str, x: str, activation: str, bias: bool, bf16_activations: bool) -> Expected:
    experts, batch = formats_case(weights, x, activation, bias)
    return oracle.layer(experts, *batch, bf16_activations=bf16_activations)


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("x", DTYPES)
@pytest.mark.parametrize("weights", DTYPES)
@pytest.mark.parametrize("isa", ALL_ISAS)
def test_formats_activations_biases_layouts(
    isa: str, weights: str, x: str, activation: str, bias: bool
) -> None:
    case = formats_case(weights, x, activation, bias)
    check(isa, case, formats_expected(weights, x, activation, bias, isa in ISAS_WITH_BF16_DOT))


def test_swiglu_limits_are_hit() -> None:
    experts, batch = formats_case("fp32", "fp32", "swiglu_oai", False)
    g = batch.x @ experts.gate[2].T
    u = batch.x @ experts.up[2].T
    assert (g > experts.limit).any()
    assert (u > experts.limit).any()
    assert (u < -experts.limit).any()


SHAPES = {  # num_experts, hidden, inter, top_k, tokens
    "one expert": (1, 72, 40, 1, 9),
    "every expert": (8, 64, 32, 8, 9),
    "H=72 I=40 E=60": (60, 72, 40, 4, 40),
    "nothing but one": (1, 1, 1, 1, 8),
    "H=33 I=1": (3, 33, 1, 2, 11),
    "H=1 I=33": (3, 1, 33, 2, 11),
    "odd": (5, 257, 131, 3, 23),
    "one beyond a block of K": (2, 1025, 513, 1, 18),
    "gpt-oss": (1, 2880, 2880, 1, 13),
    "wide, few tokens": (4, 2048, 96, 2, 3),
}
QUICK_ON_REF = {
    name: shape for name, shape in SHAPES.items() if shape[1] * shape[2] * shape[3] * shape[4] < 10**7
}


@functools.lru_cache(maxsize=16)
def shape_case(shape: str, weights: str, bf16_activations: bool) -> tuple[Case, Expected]:
    num_experts, hidden, inter, top_k, tokens = SHAPES[shape]
    dtype = DTYPES[weights]
    experts = expert_layers.random_experts(num_experts, hidden, inter, dtype, bias=True, seed=1)
    batch = expert_layers.random_batch(tokens, hidden, num_experts, top_k, dtype, seed=2)
    return (experts, batch), oracle.layer(experts, *batch, bf16_activations=bf16_activations)


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("isa", "shape"), [(isa, s) for s in SHAPES for isa in ALL_ISAS if isa != "ref" or s in QUICK_ON_REF]
)
def test_shapes(isa: str, shape: str, weights: str) -> None:
    case, expected = shape_case(shape, weights, isa in ISAS_WITH_BF16_DOT)
    layouts = LAYOUTS if shape in QUICK_ON_REF else ("rows", "interleaved")
    check(isa, case, expected, layouts)


@pytest.mark.parametrize("weights", DTYPES)
@pytest.mark.parametrize("isa", ALL_ISAS)
def test_weights_need_no_more_than_two_bytes_of_alignment(isa: str, weights: str) -> None:
    for bias, activation in ((False, "silu"), (True, "relu2")):
        case = formats_case(weights, weights, activation, bias)
        expected = formats_expected(weights, weights, activation, bias, isa in ISAS_WITH_BF16_DOT)
        check(isa, case, expected, place=expert_layers.at_odd_halfword)


# Rows or panel (6, 7); tiles of 6 and 12; blocks of tokens between 48 and 384 (by L2); parts of 512 tokens.
TOKENS = [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 18, 19, 24, 25, 47, 48, 49, 96, 97, 127, 128, 129]
TOKENS += [191, 192, 193, 255, 256, 257, 383, 384, 385, 511, 512, 513, 1023, 1024, 1025]


@functools.lru_cache(maxsize=2)
def many_tokens(bf16_activations: bool, weights: str, tokens: int) -> tuple[Case, Expected]:
    """All tokens go to expert 1; every seventh to expert 0 as well, and the last one to expert 3."""
    experts = expert_layers.random_experts(4, 40, 24, DTYPES[weights], seed=3)
    batch = expert_layers.random_batch(tokens, 40, 4, top_k=2, dtype=DTYPES[weights], seed=4)
    ids = torch.tensor([[1, 0 if t % 7 == 0 else 4] for t in range(tokens)])
    ids[-1, 1] = 3
    routed = Routed(batch.x, ids, batch.weights)
    return (experts, routed), oracle.layer(experts, *routed, bf16_activations=bf16_activations)


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
@pytest.mark.parametrize("isa", ALL_ISAS)
def test_every_number_of_tokens(isa: str, weights: str) -> None:
    """The prefixes of one large batch: a token's output depends on no other token."""
    (experts, batch), expected = many_tokens(isa in ISAS_WITH_BF16_DOT, weights, TOKENS[-1])
    with expert_layers.engine_for(isa) as engine:
        for layout in ("rows", "columns"):
            layer = engine.add_layer(expert_layers.spec_of(experts), expert_layers.memory_of(experts, layout))
            for tokens in TOKENS:
                got = layer.forward(batch.x[:tokens], batch.ids[:tokens], batch.weights[:tokens])
                Expected(expected.value[:tokens], expected.bound[:tokens]).check(got)


@functools.lru_cache(maxsize=2)
def case_of_8192_tokens(bf16_activations: bool) -> tuple[Case, Expected]:
    """32 columns of ids; every other token has two experts, of the rest some have one, some none."""
    experts = expert_layers.random_experts(4, 16, 24, torch.bfloat16, seed=5)
    batch = expert_layers.random_batch(8192, 16, 4, top_k=2, dtype=torch.bfloat16, seed=6)
    ids = torch.full((8192, 32), -1)
    ids[::2, 3:5] = batch.ids[::2]
    ids[5::8, 31] = 3
    routed = Routed(batch.x, ids, torch.rand(8192, 32, generator=torch.Generator().manual_seed(0)))
    return (experts, routed), oracle.layer(experts, *routed, bf16_activations=bf16_activations)


@pytest.mark.parametrize("isa", ALL_ISAS)
def test_8192_tokens_in_several_parts(isa: str) -> None:
    """Room for 32 gate-up results a token would be 64 MiB; the engine works in parts, which must join up."""
    (experts, batch), expected = case_of_8192_tokens(isa in ISAS_WITH_BF16_DOT)
    with expert_layers.engine_for(isa) as engine:
        layer = engine.add_layer(expert_layers.spec_of(experts), expert_layers.memory_of(experts, "rows"))
        expected.check(layer.forward(*batch))


@pytest.mark.parametrize("weights_dtype", DTYPES)
@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("isa", ALL_ISAS)
def test_output_and_routing_weights_may_be_of_other_types(isa: str, out: str, weights_dtype: str) -> None:
    experts, batch = formats_case("bf16", "fp32", "silu", False)
    batch = Routed(batch.x, batch.ids.int(), batch.weights.to(DTYPES[weights_dtype]))
    with expert_layers.engine_for(isa) as engine:
        layer = engine.add_layer(expert_layers.spec_of(experts), expert_layers.memory_of(experts, "rows"))
        got = layer.forward(*batch, out=torch.empty(batch.x.shape, dtype=DTYPES[out]))
    assert got.dtype == DTYPES[out]
    oracle.layer(experts, *batch).check(got)


@pytest.mark.parametrize(("weights", "relative"), [("fp32", 2e-4), ("bf16", 3e-2)], ids=["fp32", "bf16"])
def test_the_oracles_bounds_are_tight(weights: str, relative: float) -> None:
    """Bounds so wide that they accept anything would make every test above worthless."""
    _, expected = shape_case("odd", weights, weights == "bf16")
    assert expected.bound.square().mean().sqrt() < relative * expected.value.square().mean().sqrt()


@pytest.mark.parametrize("weights", DTYPES)
def test_the_oracle_notices_one_wrong_weight(weights: str) -> None:
    experts, batch = formats_case(weights, weights, "silu", False)
    wrong = experts.down.clone()
    wrong[1, 3, 39] = 0
    got = oracle.layer(Experts(experts.gate, experts.up, wrong), *batch).value.float()
    with pytest.raises(AssertionError, match="column 3"):
        oracle.layer(experts, *batch, bf16_activations=True).check(got)
