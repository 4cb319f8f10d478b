"""The tests that need a GPU (marker "gpu"), in pytest, and how many passed, failed and were skipped."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from bench.gpu.section import Deadline, LeftOut, OutOfTime

_ROOT = Path(__file__).resolve().parent.parent.parent
_MARKER = "pytest.mark.gpu"
_MOST_PROCESSES = 12  # they mostly compile; each has a CUDA context of half a GiB


@dataclass(frozen=True)
class TestCounts:
    """Of one run of pytest."""

    __test__ = False  # no class of tests

    passed: int
    failed: int
    skipped: int
    seconds: float
    failures: list[str]  # names of the failed


class TestsFailed(Exception):
    """At least one of them did."""


def measure(deadline: Deadline) -> Iterator[tuple[str, TestCounts]]:
    """The section "tests"."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={report}"]
        command += [*_parallel(), *marked_files(_ROOT / "tests")]
        code = _run(command, deadline.left_s)
        if not report.exists():
            raise TestsFailed(f"pytest ended with exit code {code} and no report")
        counts = read_counts(report.read_text())
        yield "tests", counts
        if code != 0:
            raise TestsFailed(f"{counts.failed} failed: {', '.join(counts.failures[:5])}")


def marked_files(folder: Path) -> list[str]:
    """Those with tests that need a GPU; to collect all others takes longer than to run these.

    Raises LeftOut if there are none.
    """
    files = [str(file) for file in sorted(folder.rglob("test_*.py")) if _MARKER in file.read_text()]
    if not files:
        raise LeftOut(f"no test in {folder} has the marker gpu")
    return files


def _parallel() -> list[str]:
    """Options of pytest-xdist, if it is installed."""
    if importlib.util.find_spec("xdist") is None:
        return []
    return ["-n", str(min(_MOST_PROCESSES, os.cpu_count() or 1))]


def _run(command: list[str], limit_s: float) -> int:
    """The exit code."""
    try:
        return subprocess.run(command, cwd=_ROOT, check=False, timeout=max(limit_s, 1)).returncode
    except subprocess.TimeoutExpired as error:
        raise OutOfTime(f"pytest was still running after {limit_s:.0f} s: no counts") from error


def read_counts(report: str) -> TestCounts:
    """What pytest's JUnit XML says."""
    suite = ElementTree.fromstring(report).find("testsuite")
    if suite is None:
        raise ValueError("pytest's report has no testsuite")
    bad = [
        case.get("name", "?")
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    return TestCounts(total - len(bad) - skipped, len(bad), skipped, float(suite.get("time", 0)), bad)
