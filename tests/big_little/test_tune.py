"""Reading a text, and the threshold that is found on it and kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import moerun
from moerun.big_little.generate import decide
from moerun.big_little.reading import Text, windows_of
from moerun.big_little.thresholds import Formats, keep_threshold, kept_threshold, threshold_file
from moerun.big_little.tune import RUNS, Tuned, tune_threshold

DEMO = Path(__file__).parents[2] / "examples" / "pycode-moe"
STEPS, PROMPT = 24, 8


@pytest.fixture(scope="module")
def text(demo: PreTrainedModel, demo_tokenizer) -> Text:
    tokens = demo_tokenizer(Path(__file__).read_text(), verbose=False).input_ids
    return Text(demo, windows_of(tokens, PROMPT, STEPS, 6), PROMPT)


def read(text: Text, **options):
    big_little = moerun.BigLittle(**options)
    return text.read(big_little, decide(big_little))


def test_windows_are_spread_over_the_text() -> None:
    windows = windows_of(list(range(100)), prompt=4, steps=5, most=3)
    assert windows.shape == (3, 10)
    assert windows[0, 0] == 0
    assert windows[-1, -1] == 99
    assert (windows.diff(dim=1) == 1).all()
    assert len(windows_of(list(range(25)), 4, 5, 9)) == 2
    with pytest.raises(ValueError, match="has 9 tokens, but 10 are needed"):
        windows_of(list(range(9)), 4, 5, 1)


def test_a_text_read_with_all_experts_is_the_full_models(text: Text) -> None:
    for options in ({"threshold": 1.0}, {"threshold": 0.0, "refresh": 1}):
        reading = read(text, **options)
        assert reading.little_share == reading.disagreement == 0
        torch.testing.assert_close(reading.nll, text.losses, rtol=0, atol=1e-3)


def test_few_experts_read_less_and_differ(text: Text) -> None:
    little, half, refreshed = (
        read(text, threshold=0.0),
        read(text, threshold=0.5),
        read(text, threshold=0.0, refresh=4),
    )
    assert little.little_share == 1
    assert little.experts_per_token == 6 * 2
    assert 0 < half.little_share < 1
    assert half.experts_per_token == pytest.approx(6 * (2 + 4 * (1 - half.little_share)))
    assert half.disagreement < little.disagreement
    assert 6 * 2 < refreshed.experts_per_token < 6 * (2 + 4)
    assert refreshed.agrees.shape == (6, STEPS)


def test_the_smallest_threshold_that_will_do(text: Text) -> None:
    steps = []
    bound = read(text, threshold=0.3).disagreement
    tuned = tune_threshold(text, moerun.BigLittle(), bound, lambda: steps.append(0))
    assert 0 < tuned.threshold <= 0.3
    assert tuned.disagreement <= bound
    assert read(text, threshold=tuned.threshold).disagreement == tuned.disagreement
    assert read(text, threshold=tuned.threshold - 0.01).disagreement > bound
    assert len(steps) <= RUNS * text.steps


def test_bounds_at_the_ends(text: Text) -> None:
    assert tune_threshold(text, moerun.BigLittle(), 1.0).threshold == 0
    strict = tune_threshold(text, moerun.BigLittle(), 0.0)
    assert strict.disagreement == 0
    for bound in (-0.1, 1.5):
        with pytest.raises(ValueError, match="share of the tokens"):
            tune_threshold(text, moerun.BigLittle(), bound)


def test_thresholds_are_kept_per_checkpoint_formats_and_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOERUN_CACHE", str(tmp_path))
    checkpoint = moerun.Checkpoint(DEMO)
    files = {
        threshold_file(checkpoint, formats, options)
        for formats in (Formats(), Formats("int8"), Formats(dense="int8"), Formats(dtype="fp32"))
        for options in (
            moerun.BigLittle(),
            moerun.BigLittle(little_k=1),
            moerun.BigLittle(refresh=4),
            moerun.BigLittle(measure="margin"),
        )
    }
    assert len(files) == 16
    file = threshold_file(checkpoint, Formats("bf16"), moerun.BigLittle(threshold=0.1, little_k=2))
    assert file in files  # the threshold does not matter, nor does saying what is the default
    with pytest.raises(ValueError, match="moerun tune-threshold"):
        kept_threshold(file)
    keep_threshold(file, Tuned(0.42, 0.01, 0.5, 18.0), 0.01)
    assert kept_threshold(file) == 0.42
    for broken in ("", "[]", '{"threshold": 7}', '{"threshold": "high"}'):
        file.write_text(broken)
        with pytest.raises(ValueError, match="moerun tune-threshold"):
            kept_threshold(file)
    monkeypatch.setenv("MOERUN_CACHE", "off")
    assert threshold_file(checkpoint, Formats(), moerun.BigLittle()) is None
    with pytest.raises(ValueError, match="MOERUN_CACHE is off"):
        kept_threshold(None)
