"""``moerun generate --big-little`` and ``moerun tune-threshold``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moerun.cli import main

PROMPT = "def add(first, second):"


def run(capsys, command, *arguments):
    """Exit code, stdout and stderr, on one thread."""
    code = main([command, *map(str, arguments), "--threads", "1"])
    return code, *capsys.readouterr()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOERUN_CACHE", str(tmp_path / "cache"))


def test_statistics_are_shown(capsys, demo):
    code, out, err = run(
        capsys, "generate", demo, PROMPT, "--max-new-tokens", 12, "--big-little", 0.5, "--stats"
    )
    assert code == 0
    assert out
    for part in (
        "threshold 0.5",
        "little tokens",
        "fallbacks",
        "were accepted",
        "experts read",
        "bytes read",
    ):
        assert part in err
    assert ("time saved" in err) != ("time lost" in err)
    assert err.count(" of 32") == 6


@pytest.mark.parametrize("more", [[], ["--refresh", 3]])
def test_lossless_text_is_the_full_models(capsys, demo, more):
    usual = run(capsys, "generate", demo, PROMPT, "--max-new-tokens", 16, "--dtype", "fp32")
    found = run(
        capsys, "generate", demo, PROMPT, "--max-new-tokens", 16, "--dtype", "fp32", "--big-little", 0.2,
        "--lossless", "--stats", *more,
    )  # fmt: skip
    assert found[:2] == usual[:2]
    assert "drafts" in found[2]


def test_json(capsys, demo):
    _, out, _ = run(
        capsys, "generate", demo, PROMPT, "--max-new-tokens", 8, "--big-little", 0,
        "--little-k", "1,1,1,4,4,4", "--json",
    )  # fmt: skip
    report = json.loads(out)["big_little"]
    assert report["threshold"] == report["fallbacks"] == 0
    assert report["little_tokens"] == 7
    assert report["experts_read"] == 7 * (3 * 1 + 3 * 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--big-little", "1.5"], "from 0 to 1, or auto"),
        (["--big-little", "often"], "from 0 to 1, or auto"),
        (["--big-little", "0.7", "--little-k", "0"], "at least 1"),
        (["--big-little", "0.7", "--refresh", "0"], "at least 1"),
        (["--big-little", "0.7", "--confidence", "vibes"], "invalid choice"),
    ],
)
def test_wrong_usage(capsys, demo, arguments, message):
    code, out, err = run(capsys, "generate", demo, PROMPT, *arguments)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lossless"], "--lossless needs --big-little"),
        (["--little-k", "2"], "--little-k needs --big-little"),
        (["--big-little", "0.7", "--little-k", "5"], "this model uses 4 experts per token"),
        (["--big-little", "0.7", "--little-k", "1,2"], "names 2 layers, but this model has 6"),
        (["--big-little", "auto"], "moerun tune-threshold"),
    ],
)
def test_what_does_not_fit(capsys, demo, arguments, message):
    code, out, err = run(capsys, "generate", demo, PROMPT, *arguments)
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_threshold_is_found_and_picked_up(capsys, demo):
    text = Path(__file__)
    found = ["--text", text, "--max-disagreement", 0.05, "--tokens", 300]
    code, out, err = run(capsys, "tune-threshold", demo, *found, "--json")
    assert (code, err) == (0, "")
    tuned = json.loads(out)
    assert 0 < tuned["threshold"] < 1
    assert tuned["disagreement"] <= 0.05
    assert Path(tuned["kept_in"]).is_file()
    auto = ["--max-new-tokens", 4, "--big-little", "auto", "--json"]
    report = json.loads(run(capsys, "generate", demo, PROMPT, *auto)[1])
    assert report["big_little"]["threshold"] == tuned["threshold"]
    for other in (["--refresh", 4], ["--dense", "int8"], ["--dtype", "fp32"], ["--experts", "int8"]):
        assert run(capsys, "generate", demo, PROMPT, *auto, *other)[0] == 1  # another run, another threshold


def test_a_threshold_is_kept_for_the_formats_that_it_was_found_with(capsys, demo):
    formats = ["--experts", "int8", "--dense", "int8", "--dtype", "fp32"]
    found = ["--text", __file__, "--max-disagreement", 1, "--tokens", 200, "--json", *formats]
    tuned = json.loads(run(capsys, "tune-threshold", demo, *found)[1])
    auto = ["--max-new-tokens", 4, "--big-little", "auto", "--json"]
    code, out, _ = run(capsys, "generate", demo, PROMPT, *auto, *formats)
    assert code == 0
    assert json.loads(out)["big_little"]["threshold"] == tuned["threshold"]
    assert run(capsys, "generate", demo, PROMPT, *auto)[0] == 1


def test_without_a_cache_the_threshold_is_only_printed(capsys, demo, monkeypatch):
    monkeypatch.setenv("MOERUN_CACHE", "off")
    code, out, err = run(
        capsys, "tune-threshold", demo, "--text", __file__, "--max-disagreement", 1, "--tokens", 200
    )
    assert code == 0
    assert out.startswith("threshold 0: 100% of 96 tokens")
    assert "not kept" in err


def test_texts_that_cannot_be_read(capsys, demo, tmp_path):
    (tmp_path / "short.txt").write_text("x = 1")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    for name, message in (
        ("short.txt", "give a longer one"),
        ("bytes.txt", "UTF-8"),
        ("none.txt", "none.txt"),
    ):
        code, out, err = run(capsys, "tune-threshold", demo, "--text", tmp_path / name)
        assert (code, out) == (1, "")
        assert message in err
    assert run(capsys, "tune-threshold", demo, "--text", __file__, "--max-disagreement", 2)[0] == 2
