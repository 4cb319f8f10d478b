"""The GPU kernels in Triton's interpreter against the float64 oracle: every format, activation and regime,
odd sizes, and all ways in which a step may be divided.

The cases cover every format in every regime, and every other property several times; not all combinations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from interpreted import Step

import oracle
from blob_oracle import FORMATS
from expert_layers import ACTIVATIONS, DTYPES, random_batch, random_experts
from moerun.kernels.contract import INTER_STEP, KernelShape
from oracle import Experts, Narrow
from quantised import memory_of, quantise

Interpret = Callable[[Step], torch.Tensor]

REGIMES = ("pair", "few", "few_split", "some", "many")
X_DTYPES = ("bf16", "fp16", "fp32")
# hidden, inter: below one step, not a multiple of a tile, several of everything, steps of 64
SIZES = ((72, 40), (130, 33), (288, 160), (192, 64))
SMALL_SIZES = SIZES[:2]  # where the interpreter has many small programs to run
EXPERTS = 4


@dataclass(frozen=True)
class Case:
    """A step and the experts, as the oracle knows them."""

    step: Step
    experts: Experts

    def expected(self, chosen: np.ndarray | None = None) -> oracle.Expected:
        """The oracle's output of the experts that have a slot; `chosen` marks pairs [tokens, top_k]."""
        step, shape = self.step, self.step.shape
        compute = DTYPES[shape.compute_dtype]
        group = FORMATS[shape.weight_format].group or 0
        tiles = step.tiles
        several = tiles.down.tokens > 1 and 0 < group < max(tiles.gate_up.step, tiles.down.step)
        ids = np.where(np.isin(step.ids, list(step.slots)), step.ids, -1)
        if chosen is not None:
            ids = np.where(chosen, ids, -1)
        narrow = Narrow(compute, compute if several else torch.float32, group)
        return oracle.layer(
            self.experts, step.x, torch.from_numpy(ids), torch.from_numpy(step.weights), narrow=narrow
        )


def make_case(
    weight_format: str,
    x_dtype: str = "bf16",
    activation: str = "silu",
    bias: bool = False,
    size: tuple[int, int] = SIZES[0],
    tokens: int = 3,
    top_k: int = 2,
    regime: str = "few",
) -> Case:
    """A step with random experts, of which the last is not chosen by any token and has no slot."""
    hidden, inter = size
    plain = random_experts(EXPERTS, hidden, inter, activation=activation, bias=bias, seed=hidden)
    biases = (
        None
        if plain.gate_bias is None or plain.up_bias is None or plain.down_bias is None
        else (plain.gate_bias.numpy(), plain.up_bias.numpy(), plain.down_bias.numpy())
    )
    memory = memory_of(plain.gate.numpy(), plain.up.numpy(), plain.down.numpy(), biases)
    quantised = quantise(memory, hidden, inter, weight_format)
    weights = [quantised.weights(e) for e in range(EXPERTS)]
    experts = replace(
        plain,
        **{name: torch.from_numpy(np.stack([w[name] for w in weights])) for name in ("gate", "up", "down")},
    )
    batch = random_batch(tokens, hidden, EXPERTS - 1, top_k, DTYPES[x_dtype])
    # Slots in another order, and between them memory that holds NaN in every format
    slots = {e: 2 * (EXPERTS - 2 - e) for e in range(EXPERTS - 1)}
    slab = np.full((2 * EXPERTS, quantised.blobs.shape[1]), 0xFF, np.uint8)
    for expert, slot in slots.items():
        slab[slot] = quantised.blobs[expert]
    shape = KernelShape(
        hidden, inter, top_k, weight_format, x_dtype, activation, bias, experts.alpha, experts.limit
    )
    step = Step(shape, slab, batch.x, batch.ids.numpy(), batch.weights.numpy(), slots, regime)
    return Case(step, experts)


def cover() -> list[tuple[str, str, str, str, bool, tuple[int, int]]]:
    """Every format in every regime; dtypes of x, activations, biases and sizes take turns."""
    cases = []
    for i, weight_format in enumerate(FORMATS):
        for j, regime in enumerate(REGIMES):
            x_dtype = X_DTYPES[(i + j) % 3]
            if regime == "many":  # not for operands in fp32
                if weight_format == "fp32":
                    continue
                x_dtype = "fp16" if weight_format == "fp16" else "bf16"
            sizes = SIZES if regime in ("few", "some") else SMALL_SIZES
            size = sizes[i % len(sizes)]
            activation = ACTIVATIONS[(i + 2 * j) % len(ACTIVATIONS)]
            cases.append((weight_format, x_dtype, regime, activation, (i + j) % 2 == 0, size))
    return cases


@pytest.mark.parametrize(("weight_format", "x_dtype", "regime", "activation", "bias", "size"), cover())
def test_equals_float64(
    interpret: Interpret,
    weight_format: str,
    x_dtype: str,
    regime: str,
    activation: str,
    bias: bool,
    size: tuple[int, int],
) -> None:
    case = make_case(weight_format, x_dtype, activation, bias, size, regime=regime)
    case.expected().check(interpret(case.step))


@pytest.mark.parametrize(
    ("regime", "tokens"), [*((regime, 1) for regime in REGIMES), ("few", 27), ("few_split", 27), ("some", 70)]
)
def test_numbers_of_tokens(interpret: Interpret, regime: str, tokens: int) -> None:
    """One; and so many that experts have a full tile and a part of another."""
    case = make_case("int8", tokens=tokens, regime=regime)
    largest = np.bincount(case.step.ids.flatten()).max()
    assert tokens == 1 or largest > min(case.step.tiles.down.tokens, 40)
    case.expected().check(interpret(case.step))


@pytest.mark.parametrize(("regime", "tokens"), [("pair", 5), ("few", 19), ("some", 70)])
def test_all_tokens_on_one_expert(interpret: Interpret, regime: str, tokens: int) -> None:
    case = make_case("int4_g32", tokens=tokens, top_k=1, regime=regime)
    case = replace(case, step=replace(case.step, ids=np.full((tokens, 1), 2)))
    case.expected().check(interpret(case.step))


def test_no_pair_at_all(interpret: Interpret) -> None:
    case = make_case("bf16")
    out = interpret(replace(case.step, ids=np.full_like(case.step.ids, -1)))
    assert (out == 0).all()


@pytest.mark.parametrize("regime", ["pair", "few_split"])
def test_experts_without_a_slot_and_ids_out_of_range_are_left_out(interpret: Interpret, regime: str) -> None:
    case = make_case("bf16", tokens=6, regime=regime)
    slots = {e: case.step.slots[e] for e in (0, 2)}
    ids = case.step.ids.copy()
    ids[0] = (-1, EXPERTS + 7)
    case = replace(case, step=replace(case.step, slots=slots, ids=ids))
    case.expected().check(interpret(case.step))


@pytest.mark.parametrize("regime", REGIMES)
def test_launches_and_slots_change_no_bit(interpret: Interpret, regime: str) -> None:
    """The same tiles in one launch or in several, and the experts in other slots."""
    case = make_case("int4z_g64", tokens=4, regime=regime)
    once = interpret(case.step)
    assert torch.equal(interpret(replace(case.step, launches=(1, 3))), once)
    moved = {e: slot + 1 for e, slot in case.step.slots.items()}
    slab = np.roll(case.step.slab, 1, axis=0)
    assert torch.equal(interpret(replace(case.step, slots=moved, slab=slab)), once)


@pytest.mark.parametrize("weight_format", ["bf16", "int4_g128", "fp8_b128"])
@pytest.mark.parametrize("regime", ["pair", "few", "few_split"])
def test_parts_of_an_expert_add_up(interpret: Interpret, weight_format: str, regime: str) -> None:
    """Experts are divided along the intermediate dimension; the one part is added as the CPU's would be."""
    inter = 2 * INTER_STEP + 8
    case = make_case(weight_format, "fp32", bias=True, size=(72, inter), tokens=2, regime=regime)
    slots = case.step.slots  # expert 2 is whole in the second part
    first = replace(
        case.step,
        slots={e: slots[e] for e in (0, 1)},
        ranges={0: (0, INTER_STEP), 1: (0, 2 * INTER_STEP)},
    )
    second = replace(case.step, ranges={0: (INTER_STEP, inter), 1: (2 * INTER_STEP, inter)})
    case.expected().check(interpret(replace(second, cpu=interpret(first))))


@pytest.mark.parametrize("x_dtype", X_DTYPES)
def test_the_cpus_part_is_added(interpret: Interpret, x_dtype: str) -> None:
    case = make_case("fp16", x_dtype, tokens=4)
    cpu = torch.randn(4, 72, generator=torch.Generator().manual_seed(1))
    expected = case.expected()
    moved = oracle.Expected(expected.value + cpu.double(), expected.bound + oracle.U * 8)
    moved.check(interpret(replace(case.step, cpu=cpu)))


@pytest.mark.parametrize("architecture", [80, 90])
def test_fp8_with_and_without_the_hardware_conversion(interpret: Interpret, architecture: int) -> None:
    case = make_case("fp8_b128", "fp32")
    case.expected().check(interpret(replace(case.step, architecture=architecture)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_stays(interpret: Interpret, activation: str) -> None:
    """In the token that has it, and only there."""
    case = make_case("bf16", "fp32", activation, tokens=3)
    x = case.step.x.clone()
    x[1, 3] = float("nan")
    out = interpret(replace(case.step, x=x))
    assert out[1].isnan().all()
    assert not out[[0, 2]].isnan().any()
