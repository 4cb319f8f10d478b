"""A suite whose sections need no GPU: run as `python -m stub_sections`, as suite.py runs the real one's."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.gpu.section import Deadline, LeftOut, Section, record

Rows = Iterator[tuple[str, dict[str, Any]]]


def good(deadline: Deadline) -> Rows:
    yield "numbers", {"n": 1}
    yield "numbers", {"n": 2}


def raises(deadline: Deadline) -> Rows:
    yield "numbers", {"n": 3}
    raise RuntimeError("no luck\nand a page of details")


def crashes(deadline: Deadline) -> Rows:
    yield "numbers", {"n": 4}
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(deadline: Deadline) -> Rows:
    """With a process of its own, whose id it tells."""
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield "numbers", {"n": 5, "pid": sleeper.pid}
    time.sleep(600)


def endless(deadline: Deadline) -> Rows:
    while True:
        deadline.check("what comes after the last number")
        yield "numbers", {"n": 6}
        time.sleep(0.01)


def left_out(deadline: Deadline) -> Rows:
    if deadline.left_s:
        raise LeftOut("needs what is not here")
    yield "numbers", {"n": 7}


SECTIONS = {f.__name__: Section(f.__name__, 1, f) for f in (good, raises, crashes, hangs, endless, left_out)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--section")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--rows", type=Path)
    options = parser.parse_args()
    record(SECTIONS[options.section].measure, Deadline.after(options.seconds), options.rows)
