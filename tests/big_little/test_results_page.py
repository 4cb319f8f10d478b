"""docs/results/mobile.md says what mobile.json holds, and the figures in it are possible."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.mobile.page import render
from bench.mobile.replayed import GPU_GB, MACHINE, PAPER_MODELS, cached_share
from moerun.replay.models import MODELS
from moerun.replay.profile import load_profile

RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.fixture(scope="module")
def data() -> dict:
    return json.loads((RESULTS / "mobile.json").read_text())


def test_the_page_shows_the_figures_beside_it(data: dict) -> None:
    assert (RESULTS / "mobile.md").read_text() == render(data)
    for plot in ("mobile-quality.png", "mobile-replay.png"):
        assert plot in render(data)
        assert (RESULTS / plot).is_file()


def test_quality_lies_between_always_little_and_always_big(data: dict) -> None:
    quality = data["quality"]
    for text in quality["texts"].values():
        first, *_, last = text["rows"]
        assert first["threshold"] == 0
        assert first["confidence"]["little_share"] == 1
        assert last["threshold"] == 1
        assert last["confidence"]["agreement"] == pytest.approx(1)
        assert last["confidence"]["perplexity"] == pytest.approx(text["full_perplexity"], rel=1e-3)
        shares = [row["confidence"]["little_share"] for row in text["rows"]]
        assert shares == sorted(shares, reverse=True)
    fp32 = next(row for row in quality["equality"] if row["dtype"] == "fp32")
    assert fp32["equal"] == fp32["prompts"]


def test_a_larger_gpu_holds_a_larger_share() -> None:
    machine = load_profile(MACHINE)
    for name in PAPER_MODELS:
        shares = [cached_share(MODELS[name], machine, size) for size in (1, *GPU_GB, 1000)]
        assert shares == sorted(shares)
        assert (shares[0], shares[-1]) == (0, 1)
