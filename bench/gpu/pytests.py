"""The tests that need a GPU (marker "gpu"), in pytest, and how many passed, failed and were skipped."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from bench.gpu.section import Deadline, LeftOut

_ROOT = Path(__file__).resolve().parent.parent.parent
_NOTHING_COLLECTED = 5  # pytest's exit code


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
        code = subprocess.run([*command, "-p", "no:cacheprovider"], cwd=_ROOT, check=False).returncode
        if code == _NOTHING_COLLECTED:
            raise LeftOut("no test has the marker gpu")
        if not report.exists():
            raise TestsFailed(f"pytest ended with exit code {code} and no report")
        counts = read_counts(report.read_text())
        yield "tests", counts
        if code != 0:
            raise TestsFailed(f"{counts.failed} failed: {', '.join(counts.failures[:5])}")


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
