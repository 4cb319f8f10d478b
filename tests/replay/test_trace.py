"""The trace format, and the traces that are made up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moerun.replay.fit import LRU_AT_25, measured_hit_rate
from moerun.replay.models import MODELS
from moerun.replay.synthetic import STYLES, generate
from moerun.replay.trace import DECODE, PREFILL, Trace

QWEN2 = replace(MODELS["Qwen2-57B-A14B"], num_layers=5)
STYLE = STYLES["Qwen2-57B-A14B"]


def test_a_saved_trace_is_read_back(tmp_path: Path) -> None:
    trace = generate(QWEN2, STYLE, prompt=7, decode=3, seed=0, warmup=2)
    trace.save(tmp_path / "t.npz")
    read = Trace.load(tmp_path / "t.npz")
    assert read.model == "Qwen2-57B-A14B"
    for name in ("ids", "scores", "step", "phase", "predicted"):
        np.testing.assert_array_equal(getattr(read, name), getattr(trace, name))
    assert read.corrected is None


def test_steps_and_phases() -> None:
    trace = generate(QWEN2, STYLE, prompt=7, decode=3, seed=0, warmup=2)
    assert [len(tokens) for tokens in trace.steps()] == [1, 1, 7, 1, 1, 1]
    assert [trace.phase[tokens[0]] for tokens in trace.steps()] == [DECODE, DECODE, PREFILL, *[DECODE] * 3]
    assert trace.loads(trace.steps()[2], 0).sum() == 7 * trace.top_k


def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    trace = generate(QWEN2, STYLE, prompt=2, decode=2, seed=0)
    with pytest.raises(ValueError, match="step has shape"):
        replace(trace, step=trace.step[:-1])
    with pytest.raises(ValueError, match="expert 64 of 64"):
        replace(trace, ids=np.full_like(trace.ids, 64))
    with pytest.raises(ValueError, match="step falls"):
        replace(trace, step=trace.step[::-1])
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match="no routing trace"):
        Trace.load(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="no routing trace"):
        Trace.load(tmp_path / "other.npz")


def test_generation_is_deterministic_and_depends_on_the_seed() -> None:
    first, again = (generate(QWEN2, STYLE, 0, 6, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first.scores, again.scores)
    assert (first.ids != generate(QWEN2, STYLE, 0, 6, seed=2).ids).any()


def test_ids_are_the_best_scores_and_scores_are_probabilities() -> None:
    trace = generate(QWEN2, STYLE, 0, 20, seed=0)
    best = np.sort(trace.scores, axis=-1)[..., -trace.top_k :][..., ::-1]
    chosen = np.take_along_axis(trace.scores, trace.ids.astype(int), axis=-1)
    np.testing.assert_array_equal(chosen, best)
    np.testing.assert_allclose(trace.scores.sum(-1, dtype=np.float32), 1, atol=0.01)


def test_predictions_are_better_than_chance_and_worse_with_distance() -> None:
    trace = generate(QWEN2, STYLE, 0, 60, seed=0)
    assert trace.predicted is not None
    hits = []
    for distance in (1, 2, 3):
        likely = np.argsort(-trace.predicted[:, :-distance, distance - 1], axis=-1)[..., : trace.top_k]
        chosen = trace.ids[:, distance:]
        hits.append((likely[..., :, None] == chosen[..., None, :]).any(-1).mean())
    assert hits[0] > hits[1] > hits[2] > 2 * trace.top_k / trace.num_experts


@pytest.mark.parametrize("model", LRU_AT_25)
def test_lru_hits_as_often_as_in_the_paper(model: str) -> None:
    reached = measured_hit_rate(MODELS[model], STYLES[model], "lru", 0.25)
    assert reached == pytest.approx(LRU_AT_25[model], abs=0.01)
