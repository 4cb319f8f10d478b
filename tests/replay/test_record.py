"""Recording a trace from a real model, replaying it from the command line, and the page of results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moerun import cli
from moerun.replay.page import render
from moerun.replay.trace import DECODE, PREFILL, Trace

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "examples" / "traces").glob("*.npz"))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("trace")
    (folder / "text.py").write_text("def add(a, b):\n    return a + b\n" * 8)
    arguments = [
        "--text",
        str(folder / "text.py"),
        "-o",
        str(folder / "t.npz"),
        "--prompt",
        "10",
        "--tokens",
        "40",
    ]
    assert cli.main(["trace", str(ROOT / "examples" / "pycode-moe"), *arguments]) == 0
    return Trace.load(folder / "t.npz")


def test_a_recorded_trace_is_what_the_router_did(recorded: Trace) -> None:
    assert recorded.scores.shape == (40, 6, 32)
    assert recorded.top_k == 4
    assert recorded.phase.tolist() == [PREFILL] * 10 + [DECODE] * 30
    assert [len(tokens) for tokens in recorded.steps()] == [10] + [1] * 30
    np.testing.assert_allclose(recorded.scores.sum(-1, dtype=np.float32), 1, atol=0.01)
    chosen = np.take_along_axis(recorded.scores, recorded.ids.astype(int), axis=-1)
    best = np.sort(recorded.scores, axis=-1)[..., -4:][..., ::-1]
    np.testing.assert_array_equal(chosen, best)


def test_the_next_gate_predicts_better_than_chance(recorded: Trace) -> None:
    for predicted in (recorded.predicted, recorded.corrected):
        assert predicted is not None
        likely = np.argsort(-predicted[10:, :-1, 0], axis=-1)[..., :4]
        hits = (likely[..., :, None] == recorded.ids[10:, 1:][..., None, :]).any(-1).mean()
        assert hits > 2 * 4 / 32
        assert not predicted[:, -1].any()  # nothing follows the last layer


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_traces_replay(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(["replay", str(path), "--cache-ratio", "0.25", "--schedule", "HybriMoE", "ours", "--json"])
        == 0
    )
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["system"] for row in rows] == ["HybriMoE", "ours"]
    assert all(row["decode"]["step_ms"] > 0 for row in rows)
    assert cli.main(["replay", str(path), "--cache-ratio", "0.5", "--schedule", "ours"]) == 0
    assert "ms/token" in capsys.readouterr().out


def test_unknown_names_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["replay", str(SHIPPED[0]), "--schedule", "vllm"]) != 0
    assert "known: llama.cpp" in capsys.readouterr().err
    assert cli.main(["replay", str(SHIPPED[0]), "--profile", "rtx9999"]) != 0
    assert "rtx4090-ddr5" in capsys.readouterr().err


def test_the_page_shows_the_figures_beside_it() -> None:
    results = ROOT / "docs" / "results"
    assert (results / "hybrimoe.md").read_text() == render(
        json.loads((results / "hybrimoe.json").read_text())
    )
