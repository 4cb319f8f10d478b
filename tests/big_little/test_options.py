"""BigLittle's values, and whether they fit a model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import moerun
from moerun.big_little.options import DEFAULT_DRAFT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -0.1}, "threshold is -0.1"),
        ({"threshold": 1.01}, "within 0 .* and 1"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"threshold": "0.7"}, "threshold is '0.7'"),
        ({"little_k": 0}, "little_k is 0; .*at least one expert"),
        ({"little_k": 2.0}, "whole number"),
        ({"little_k": [2, 0]}, r"little_k is \[2, 0\]"),
        ({"little_k": [2, None]}, "whole number"),
        ({"refresh": -1}, "refresh is -1; .*at least 1"),
        ({"refresh": 1.5}, "refresh is 1.5"),
        ({"lossless": True, "refresh": -2}, "at least 1"),
        ({"measure": "vibes"}, "probability, margin, entropy, got 'vibes'"),
    ],
)
def test_values_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        moerun.BigLittle(**options)


@given(st.integers(2, 64), st.integers(1, 100))
def test_half_of_the_experts_rounded_up_is_the_default(top_k: int, layers: int) -> None:
    schedule = moerun.BigLittle().little_k_of_layers(layers, top_k)
    assert schedule == ((top_k + 1) // 2,) * layers
    assert 1 <= schedule[0] < top_k


def test_a_schedule_of_layers() -> None:
    assert moerun.BigLittle(little_k=[1, 4, 2]).little_k_of_layers(3, 4) == (1, 4, 2)
    assert moerun.BigLittle(little_k=3).little_k_of_layers(2, 4) == (3, 3)


@pytest.mark.parametrize(
    ("options", "layers", "top_k", "message"),
    [
        ({}, 2, 1, "1 expert per token .*no smaller number"),
        ({"little_k": 5}, 2, 4, "little_k is 5, but this model uses 4"),
        ({"little_k": (2, 5)}, 2, 4, "little_k is 5"),
        ({"little_k": (2, 2)}, 3, 4, "names 2 layers, but this model has 3"),
    ],
)
def test_what_does_not_fit_a_model(options: dict, layers: int, top_k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        moerun.BigLittle(**options).little_k_of_layers(layers, top_k)


def test_the_longest_draft() -> None:
    assert moerun.BigLittle(lossless=True).draft == DEFAULT_DRAFT
    assert moerun.BigLittle(lossless=True, refresh=3).draft == 3
