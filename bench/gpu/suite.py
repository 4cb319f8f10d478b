"""Runs sections one after the other, each in a process of its own and within its share of the time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.gpu.section import Outcome, Section, read

# Between a section's deadline, which it looks at after every row, and its end by force.
GRACE_S = 20.0
_ROOT = Path(__file__).resolve().parent.parent.parent


def share(left_s: float, weights: Sequence[float]) -> float:
    """Seconds for the first of the sections that remain; what it does not use, the later ones get."""
    return max(0.0, left_s) * weights[0] / sum(weights)


def run_all(sections: Sequence[Section], seconds: float, module: str) -> Iterator[Outcome]:
    """Outcomes in order. `module` is run with `--section NAME --seconds S --rows FILE` for each."""
    end = time.monotonic() + seconds
    for i, section in enumerate(sections):
        budget_s = share(end - time.monotonic(), [later.weight for later in sections[i:]])
        yield run_one(section.name, budget_s, module)


def run_one(section: str, budget_s: float, module: str, grace_s: float = GRACE_S) -> Outcome:
    """Runs a section until it ends; kills its process, with those that it started, when it takes too long."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows"
        arguments = ["--section", section, "--seconds", f"{budget_s:.1f}", "--rows", str(rows)]
        begin = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments], cwd=_ROOT, start_new_session=True
        )
        try:
            code = process.wait(budget_s + grace_s)
            died = f"its process ended with {_ending(code)}"
        except subprocess.TimeoutExpired:
            died = f"killed: still running {grace_s:.0f} s after its {budget_s:.0f} s"
        finally:
            _end_group(process)
        return read(section, rows, died, time.monotonic() - begin)


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):  # nothing of it is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
