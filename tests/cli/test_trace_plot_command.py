"""moerun trace-plot: the last step of a timeline, and files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fake_driver import FakeDriver
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


def test_lanes_of_an_engine_with_a_gpu(gpu: FakeDriver, tmp_path: Path) -> None:
    """Experts that are not cached are copied or run on the CPU, and sums come back: every lane is busy, and
    what was planned has one too."""
    picture, path = tmp_path / "step.svg", tmp_path / "timeline.json"
    blob_bytes = 3 * 48 * 256 * 4 + 256
    options = {"schedule": "balanced", "gpu_cache": 3 * blob_bytes, "cpu_threads": 1}
    with Engine(device="cuda", **options) as engine:
        tensors = {"gate_up": torch.randn(8, 512, 48), "down": torch.randn(8, 48, 256)}
        layers = [engine.add_layer(LayerSpec(8, 48, 256, 2), tensors) for _ in range(2)]
        ids = torch.arange(8).reshape(4, 2)
        for _ in range(3):
            for layer in layers:
                layer.forward(torch.randn(4, 48), ids, torch.rand(4, 2))
        engine.trace(path)
    spans = timeline.read_spans(path)
    lanes = [lane for _, lane in sorted({(span.row, span.lane) for span in spans})]
    assert lanes == ["CPU thread 0", "GPU", "H2D copies", "D2H copies", "Plan"]
    step = timeline.last_step(spans)
    assert {span.layer for span in step if span.lane == "D2H copies"} == {0, 1}
    assert main(["trace-plot", str(path), "-o", str(picture)]) == 0
    drawn = picture.read_text()
    assert all(f"<!-- {lane} -->" in drawn for lane in {span.lane for span in step})


def test_cpu_threads_are_in_the_order_of_their_numbers() -> None:
    spans = [timeline.Span(row, f"CPU thread {row}", "down", 0, float(row), 1.0) for row in (10, 2, 0)]
    (axes,) = timeline.draw(spans).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "CPU thread 0",
        "CPU thread 2",
        "CPU thread 10",
    ]


@pytest.mark.parametrize("content", ["", "[]", '{"traceEvents": [{}]}', '{"traceEvents": []}'])
def test_refuses_what_is_no_timeline(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    assert main(["trace-plot", str(path), "-o", str(tmp_path / "x.png")]) == 1
    assert str(path) in capsys.readouterr().err
