"""examples/demo.py, cut short: it continues the prompt and shows speed and usage of every layer."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


def test_demo(capsys: pytest.CaptureFixture[str]) -> None:
    demo = runpy.run_path(str(DEMO))
    demo["main"](new_tokens=5)
    shown = capsys.readouterr().out
    assert shown.startswith(demo["PROMPT"])
    assert "decode" in shown
    assert len(shown.split("tokens per expert\n")[1].splitlines()) == 6  # layers
