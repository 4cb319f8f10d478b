"""Python programs in a process of their own: for crashes, forks, signals and what an import does."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

TESTS = Path(__file__).parent


def run_python(
    program: str, *arguments: str, timeout: float = 60, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs `program` with tests/ and its folders importable; a hang ends it, and with it the test.

    Environment variables are given as keywords. Output is captured; the caller looks at the return code.
    """
    path = os.pathsep.join(str(p) for p in (TESTS, TESTS / "kernels", TESTS / "engine"))
    inherited = {name: value for name, value in os.environ.items() if name != "MOERUN_ISA"}
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=inherited | {"PYTHONPATH": path} | environment,
    )


def check_python(program: str, *arguments: str, timeout: float = 60, **environment: str) -> str:
    """The same for programs that must succeed; returns what they print."""
    child = run_python(program, *arguments, timeout=timeout, **environment)
    assert child.returncode == 0, (
        f"ended with {child.returncode}\n{child.stdout[-2000:]}\n{child.stderr[-4000:]}"
    )
    return child.stdout
