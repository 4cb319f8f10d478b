"""examples/demo.py, cut short: it continues the prompt and shows the usage of every layer."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


def test_demo(capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(DEMO))
    assert example["demo"](new_tokens=5) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(example["PROMPT"])
    assert len(shown.err.split("tokens per expert\n")[1].splitlines()) == 6  # layers
