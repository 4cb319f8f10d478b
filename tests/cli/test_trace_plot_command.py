"""moerun trace-plot: the last step of a timeline, and files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moerun import Engine, LayerSpec, timeline
from moerun.cli import main


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A timeline of three steps over two layers."""
    path = tmp_path / "timeline.json"
    with Engine(cpu_threads=1) as engine:
        tensors = {"gate_up": torch.randn(4, 64, 48), "down": torch.randn(4, 48, 32)}
        layers = [engine.add_layer(LayerSpec(4, 48, 32, 2), tensors) for _ in range(2)]
        for _ in range(3):
            for layer in layers:
                layer.forward(torch.randn(3, 48), torch.tensor([[0, 1], [1, 2], [3, 0]]), torch.rand(3, 2))
        engine.trace(path)
    return path


def test_draws_the_last_step(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "step.png"
    assert main(["trace-plot", str(written), "-o", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "spans" in capsys.readouterr().out


def test_the_last_step_is_one_pass_over_the_layers(written: Path) -> None:
    spans = timeline.read_spans(written)
    step = timeline.last_step(spans)
    assert len(spans) == 3 * len(step)
    assert [span.layer for span in step] == sorted(span.layer for span in step)
    assert step == spans[-len(step) :]


@pytest.mark.parametrize("content", ["", "[]", '{"traceEvents": [{}]}', '{"traceEvents": []}'])
def test_refuses_what_is_no_timeline(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    assert main(["trace-plot", str(path), "-o", str(tmp_path / "x.png")]) == 1
    assert str(path) in capsys.readouterr().err
