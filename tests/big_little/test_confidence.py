"""The measures of confidence: their range, known values, and what they have in common."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moerun.big_little.confidence import confidence_of
from moerun.big_little.options import MEASURES


@pytest.mark.parametrize("measure", MEASURES)
@given(logits=st.lists(st.floats(-50, 50), min_size=2, max_size=20), shift=st.floats(-100, 100))
def test_between_zero_and_one_and_blind_to_a_shift(measure: str, logits: list[float], shift: float) -> None:
    values = torch.tensor(logits)
    confidence = confidence_of(measure)(values)
    assert -1e-6 <= confidence <= 1 + 1e-6
    torch.testing.assert_close(confidence_of(measure)(values + shift), confidence, atol=1e-4, rtol=0)


@pytest.mark.parametrize("measure", MEASURES)
def test_certain_and_ignorant(measure: str) -> None:
    certain = torch.full((3, 8), float("-inf"))
    certain[:, 5] = 0
    torch.testing.assert_close(confidence_of(measure)(certain), torch.ones(3))
    ignorant = {"probability": 1 / 8, "margin": 0.0, "entropy": 0.0}[measure]
    torch.testing.assert_close(
        confidence_of(measure)(torch.zeros(2, 8)), torch.full((2,), ignorant), atol=1e-6, rtol=0
    )


def test_known_values() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    assert confidence_of("probability")(logits) == pytest.approx(0.5)
    assert confidence_of("margin")(logits) == pytest.approx(0.2)
    assert confidence_of("entropy")(logits) == pytest.approx(1 - 1.02965 / 1.09861, abs=1e-4)
