"""The table at the end, on made-up figures; and the suite where there is no GPU."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import moerun
from bench import gpu_suite
from bench.gpu.models import check_hybrid, settings
from bench.gpu.pytests import marked_files, read_counts
from bench.gpu.section import COMPLETE, CUT_SHORT, FAILED, LEFT_OUT, LeftOut, Outcome
from bench.gpu.summary import exit_code, print_summary


def kernel(tokens: int, of_memory: float, of_matmul: float, graph_us: float, **more: object) -> dict:
    row = {"model": "Qwen3-30B-A3B", "weight_format": "bf16", "tokens": tokens, "error": ""}
    return row | {"of_memory": of_memory, "of_matmul": of_matmul, "graph_us": graph_us} | more


def rival(tokens: int, graph_us: float | None) -> dict:
    return {"model": "Qwen3-30B-A3B", "rival": "grouped_mm", "tokens": tokens, "graph_us": graph_us}


LIMITS = {"copy_gb_per_s": 4310.2, "read_gb_per_s": 4400.0, "matmul_tflop_per_s": 788.4}
OUTCOMES = [
    Outcome(
        "card",
        COMPLETE,
        seconds=8.2,
        tables={
            "card": [{"name": "Some Card", "architecture": "sm_90", "driver_version": "580.1"}],
            "limits": [LIMITS],
        },
    ),
    Outcome("copies", FAILED, "its process ended with SIGSEGV", 3.0),
    Outcome("tests", FAILED, "TestsFailed: 1 failed: test_a", 60.0),
    Outcome(
        "kernels",
        CUT_SHORT,
        "out of time, not measured: Mixtral-8x7B mxfp4",
        200.0,
        {
            "kernels": [
                kernel(1, 0.714, 0.01, 20.0),
                kernel(16, 0.866, 0.1, 100.0),
                kernel(4096, 0.05, 0.62, 1000.0),
                kernel(4, 0.0, 0.0, 0.0, weight_format="int8", error="WRONG: relative error 0.5"),
            ],
            "rivals": [rival(1, 50.0), rival(16, None), rival(4096, 2000.0)],
        },
    ),
    Outcome("models", LEFT_OUT, "this moerun's engine does not use a GPU yet", 2.0),
]


def test_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(OUTCOMES)
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 20
    assert "Some Card, sm_90, driver 580.1" in text
    assert "copy 4310 GB/s, read 4400 GB/s; bf16 product 788 TFLOP/s" in text
    assert "of memory 1: 71%, 16: 87%; of matmul 4096: 62%" in text
    assert "grouped_mm takes 1: 2.50x, 4096: 2.00x" in text
    assert "3 of 4 rows right and timed" in text
    assert "int8 4 tokens: WRONG: relative error 0.5" in text
    by_section = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "FAILED" in by_section["copies"]
    assert "SIGSEGV" in by_section["copies"]
    assert "left out" in by_section["models"]


def test_a_failed_section_is_the_exit_code() -> None:
    assert exit_code(OUTCOMES) == 1
    assert exit_code([o for o in OUTCOMES if o.status != FAILED]) == 0


def test_counts_of_a_run_of_pytest() -> None:
    cases = (
        '<testcase name="a"/><testcase name="b"><failure/></testcase><testcase name="c"><skipped/></testcase>'
    )
    report = f'<testsuites><testsuite tests="3" skipped="1" time="1.5">{cases}</testsuite></testsuites>'
    counts = read_counts(report)
    assert (counts.passed, counts.failed, counts.skipped, counts.failures) == (1, 1, 1, ["b"])
    with pytest.raises(ValueError, match="no testsuite"):
        read_counts("<testsuites/>")


def test_only_files_with_gpu_tests_are_collected(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "test_a.py").write_text("@pytest.mark.gpu\ndef test(): ...\n")
    (tmp_path / "test_b.py").write_text("def test(): ...\n")
    assert marked_files(tmp_path) == [str(tmp_path / "deep" / "test_a.py")]
    (tmp_path / "deep" / "test_a.py").unlink()
    with pytest.raises(LeftOut, match="has the marker gpu"):
        marked_files(tmp_path)


def test_model_settings_hold_the_part_that_they_say() -> None:
    caches = {s.name: s.options.get("gpu_cache") for s in settings(1000, 512)}
    assert caches["CPU only"] is None
    assert caches["all GPU"] == caches["100% cached"] == 512_000
    assert (caches["50% cached"], caches["10% cached"], caches["0% cached"]) == (256_000, 51_000, 0)


def test_an_engine_without_a_gpu_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Config:
        cpu_threads: int = 1

    monkeypatch.setattr(moerun, "EngineConfig", Config)
    with pytest.raises(LeftOut, match="does not use a GPU yet"):
        check_hybrid()


@pytest.mark.parametrize(("cuda", "message"), [(None, "torch .* has none"), ("13.0", "torch finds none")])
def test_without_a_gpu_there_is_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cuda: str | None, message: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_suite"])
    assert gpu_suite.main() == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert re.search(message, printed.err)
