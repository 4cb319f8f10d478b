"""docs/results/mobile.md says what bench/results/mobile-*.json hold, and the figures are possible."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.mobile.__main__ import PARTS, kept_results
from bench.mobile.page import render
from bench.mobile.replayed import BASE, GPU_GB, MACHINE, PAPER_MODELS, cached_share
from bench.report import RESULTS as KEPT
from moerun.replay.models import MODELS
from moerun.replay.profile import load_profile

RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.fixture(scope="module")
def data() -> dict:
    return kept_results(KEPT)


def test_the_page_shows_the_figures_beside_it(data: dict) -> None:
    assert (RESULTS / "mobile.md").read_text() == render(data)
    for part, plot in (("quality", "mobile-quality.png"), ("replay", "mobile-replay.png")):
        assert (plot in render(data)) == (part in data)
        assert (RESULTS / plot).is_file()


def test_a_part_that_was_never_made_is_named(data: dict) -> None:
    for part in PARTS:
        rest = {name: found for name, found in data.items() if name != part}
        rest["environment"] = {name: found for name, found in data["environment"].items() if name != part}
        page = render(rest)
        assert f"`python -m bench.mobile --only {part}`" in page


def test_quality_lies_between_always_little_and_always_big(data: dict) -> None:
    if "quality" not in data:
        pytest.skip("bench/results has no figures of quality yet")
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
        for row in text["rows"]:
            assert row["chance"]["little_share"] == row["confidence"]["little_share"]
            assert row["ahead"]["low"] <= row["ahead"]["mean"] <= row["ahead"]["high"]
    for row in quality["lossless"]:
        assert 0 <= row["acceptance"] <= 1
        assert 0 <= row["shared"] < 1
        assert row["verifying_per_token"] < row["experts_per_token"]
    fp32 = next(row for row in quality["equality"] if row["dtype"] == "fp32")
    assert fp32["equal"] == fp32["prompts"]


def test_drafts_are_compared_with_all_experts_on_the_same_machine(data: dict) -> None:
    if "drafts" not in data:
        pytest.skip("bench/results has no figures of replayed drafts yet")
    rows = {(r["model"], r["gpu_gb"], r["system"], r["pattern"]): r for r in data["drafts"]}
    for (model, size, system, pattern), row in rows.items():
        plain = rows[model, size, system, BASE]
        assert (pattern == BASE) == (row["active"] == plain["active"])
        assert row["cached"] == plain["cached"]
        assert 0 <= row["hit_rate"] <= 1


def test_a_larger_gpu_holds_a_larger_share() -> None:
    machine = load_profile(MACHINE)
    for name in PAPER_MODELS:
        shares = [cached_share(MODELS[name], machine, size) for size in (1, *GPU_GB, 1000)]
        assert shares == sorted(shares)
        assert (shares[0], shares[-1]) == (0, 1)
