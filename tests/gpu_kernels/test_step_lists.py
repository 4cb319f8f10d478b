"""The lists of a step (kernels/lists.py), and the table of tiles: what the contract demands of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expert_layers import ACTIVATIONS
from moerun import WEIGHT_FORMATS
from moerun.errors import KernelError
from moerun.kernels.contract import INTER_STEP, KernelShape, description
from moerun.kernels.layout import Tile, layer_of
from moerun.kernels.lists import step_lists
from moerun.kernels.tiles import SHARED_LIMIT, regimes, smaller

EXPERTS = 6


@given(
    ids=st.integers(1, 5).flatmap(
        lambda top_k: st.lists(
            st.lists(st.integers(-1, EXPERTS), min_size=top_k, max_size=top_k), min_size=1, max_size=20
        )
    ),
    resident=st.sets(st.integers(0, EXPERTS - 1)),
    tile_tokens=st.sampled_from([1, 3, 16]),
    split=st.sampled_from([1, 4]),
)
def test_every_pair_has_one_tile_and_rows_of_its_own(
    ids: list[list[int]], resident: set[int], tile_tokens: int, split: int
) -> None:
    chosen = np.array(ids)
    weights = np.arange(chosen.size, dtype=np.float32).reshape(chosen.shape)
    slots = {expert: 10 + expert for expert in resident}
    lists = step_lists(chosen, weights, slots, 256, tile_tokens, split)

    rows_of_pair: dict[int, tuple[int, int]] = {}  # pair -> first row, expert
    for slot, first, pairs, begin, end, first_row in lists.tiles.tolist():
        assert 1 <= pairs <= tile_tokens
        assert (begin, end) == (0, 256)
        for i in range(pairs):
            assert first + i not in rows_of_pair
            rows_of_pair[first + i] = (first_row + i * split, slot - 10)
    assert sorted(rows_of_pair) == list(range(lists.pairs))

    by_row = {row: (pair, expert) for pair, (row, expert) in rows_of_pair.items()}
    assert sorted(by_row) == [split * i for i in range(lists.pairs)]
    seen = set()
    for (token, choice), expert in np.ndenumerate(chosen):
        row, count = lists.token_rows[token, choice]
        if expert not in slots:
            assert count == 0
            continue
        pair, of_tile = by_row[row]
        assert (count, of_tile) == (split, expert)
        assert lists.pair_token[pair] == token
        assert lists.pair_weight[pair] == weights[token, choice]
        seen.add(pair)
    assert len(seen) == lists.pairs


@pytest.mark.parametrize("architecture", SHARED_LIMIT)
@given(
    hidden=st.integers(1, 8192),
    inter=st.integers(1, 16384),
    weight_format=st.sampled_from(WEIGHT_FORMATS),
    x_dtype=st.sampled_from(["bf16", "fp16", "fp32"]),
)
def test_tiles_keep_the_contract(
    architecture: int, hidden: int, inter: int, weight_format: str, x_dtype: str
) -> None:
    shape = KernelShape(hidden, inter, 8, weight_format, x_dtype)
    found = regimes(shape, architecture)
    assert [r.gate_up.tokens for r in found] == sorted(r.gate_up.tokens for r in found)
    for regime in found:
        assert regime.gate_up.tokens == regime.down.tokens
        assert (regime.activate is not None) == (regime.gate_up.split > 1)
        assert INTER_STEP % regime.down.step == 0  # parts of I begin at a step of down
        for tile in (regime.gate_up, regime.down):
            assert tile.step & (tile.step - 1) == 0
            assert tile.step >= 32 or x_dtype == "fp32"


@pytest.mark.parametrize("exceeded", ["shared memory", "tensor memory"])
def test_smaller_tiles_come_to_an_end(exceeded: str) -> None:
    tile: Tile | None = Tile(rows=128, tokens=64, step=128, num_stages=4)
    seen = []
    while tile is not None:
        seen.append(tile)
        tile = smaller(tile, exceeded)
    assert len(set(seen)) == len(seen) > 1
    assert {t.tokens for t in seen} == {64}
    assert all(t.rows >= 16 and t.step >= 32 for t in seen)


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(KernelError, match=r"no GPU kernels for sm_75; supported: sm_80, .*sm_120"):
        regimes(KernelShape(64, 64, 1, "bf16", "bf16"), 75)


def test_an_expert_beyond_32_bit_offsets_is_refused() -> None:
    with pytest.raises(ValueError, match="choose a smaller weight format"):
        layer_of(KernelShape(2**14, 2**15, 1, "fp32", "fp32"), 90)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_description_says_everything_that_is_compiled_in(activation: str) -> None:
    shape = KernelShape(72, 40, 4, "int4_g32", "fp16", activation, True, 1.5, 6.0)
    lines = description(shape, "moerun_down", 64, 16, 4).decode("ascii").splitlines()
    said = dict(line.split(" ") for line in lines)
    assert said == {
        "moerun_kernel": "1",
        "function": "moerun_down",
        "format": "int4_g32",
        "x": "fp16",
        "compute": "fp16",
        "activation": activation,
        "alpha": "1.5",
        "limit": "6.0",
        "bias": "1",
        "hidden": "72",
        "inter": "40",
        "top_k": "4",
        "h_stride": "64",
        "y_stride": "96",
        "tile_rows": "64",
        "tile_tokens": "16",
        "split": "4",
    }
