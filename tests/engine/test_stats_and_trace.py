"""stats() counts what was done; trace() writes a timeline that Chrome can read."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
import torch

import expert_layers
import moerun


def test_counts(small) -> None:
    x, ids, weights = small.batch
    small.layer.submit(x, torch.full_like(ids, -1), weights).wait()
    small.layer.forward(x[:0], ids[:0], weights[:0])
    small.layer.forward(x[:3], torch.tensor([[4, 4], [9, 0], [-1, 4]]), weights[:3])
    stats = small.engine.stats()
    assert stats["cpu_threads"] == 1
    assert stats["isa"] in expert_layers.ALL_ISAS
    assert stats["workspace_bytes"] > 0
    (layer,) = stats["layers"]
    assert layer["batches"] == 4
    assert layer["tokens"] == 7 + 7 + 0 + 3
    of_first = torch.bincount(ids.flatten(), minlength=5)
    assert layer["expert_tokens"].tolist() == (of_first + torch.tensor([1, 0, 0, 0, 3])).tolist()
    active = int((of_first > 0).sum()) + 2
    assert layer["weight_bytes"] == active * 3 * 24 * 12 * 4
    assert layer["seconds"] > 0


@pytest.mark.parametrize("name", expert_layers.DTYPES)
def test_weight_bytes_by_format(name: str) -> None:
    dtype = expert_layers.DTYPES[name]
    experts = expert_layers.random_experts(4, 16, 8, dtype)
    with moerun.Engine(cpu_threads=2) as engine:
        layer = engine.add_layer(expert_layers.spec_of(experts), expert_layers.tensors_of(experts))
        layer.forward(torch.zeros(2, 16), torch.tensor([[0], [2]]), torch.ones(2, 1))
        assert engine.stats()["layers"][0]["weight_bytes"] == 2 * 3 * 16 * 8 * dtype.itemsize


def test_layers_are_counted_apart(small) -> None:
    other = small.engine.add_layer(small.layer.spec, expert_layers.tensors_of(small.experts))
    assert small.engine.layers == (small.layer, other)
    other.forward(*small.batch)
    other.forward(*small.batch)
    assert [layer["batches"] for layer in small.engine.stats()["layers"]] == [1, 2]


def read(path: Path) -> list[dict]:
    events = json.loads(path.read_text())["traceEvents"]
    assert all(e["ph"] in "XM" and e["pid"] == 1 for e in events)
    return events


def test_a_trace_without_events(small, tmp_path) -> None:
    moerun.Engine(cpu_threads=1).trace(tmp_path / "empty.json")
    assert read(tmp_path / "empty.json") == []


@pytest.mark.parametrize("threads", [1, 3])
def test_a_lane_per_thread(small, tmp_path, threads: int) -> None:
    with moerun.Engine(cpu_threads=threads) as engine:
        layers = [
            engine.add_layer(small.layer.spec, expert_layers.tensors_of(small.experts)) for _ in range(2)
        ]
        for _ in range(30):
            for layer in layers:
                layer.forward(*small.batch)
    engine.trace(str(tmp_path / "trace.json"))
    events = read(tmp_path / "trace.json")
    names = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    work = [e for e in events if e["ph"] == "X"]
    assert {e["tid"] for e in work} == set(names)
    assert set(names.values()) <= {f"CPU thread {n}" for n in range(threads)}
    assert names[min(names)] == "CPU thread 0"
    assert {e["name"] for e in work} == {"convert", "gate_up", "down"}
    assert {e["args"]["layer"] for e in work} == {0, 1}
    assert {e["args"]["tokens"] for e in work} == {7}
    assert all(e["ts"] >= 0 and e["dur"] >= 0 for e in work)
    for lane in names:
        spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in work if e["tid"] == lane)
        # Times are written to a thousandth of a microsecond.
        assert all(b[0] >= a[1] - 0.002 for a, b in itertools.pairwise(spans)), "events of a thread overlap"


def test_the_ring_keeps_the_newest(tmp_path) -> None:
    capacity = 1 << 16
    experts = expert_layers.random_experts(1, 1, 1)
    with moerun.Engine(cpu_threads=1) as engine:
        tensors, spec = expert_layers.tensors_of(experts), expert_layers.spec_of(experts)
        old, new = engine.add_layer(spec, tensors), engine.add_layer(spec, tensors)
        batch = [t.numpy() for t in expert_layers.random_batch(1, 1, 1, 1)]
        for _ in range(25_000):
            old.forward(*batch)
        for _ in range(10):
            new.forward(*batch)
        engine.trace(tmp_path / "full.json")
    work = [e for e in read(tmp_path / "full.json") if e["ph"] == "X"]
    per_batch = 3  # convert, gate_up, down
    assert len(work) == capacity < 25_010 * per_batch
    assert Counter(e["args"]["layer"] for e in work) == {0: capacity - 10 * per_batch, 1: 10 * per_batch}
    starts = [e["ts"] for e in work]
    assert starts == sorted(starts)
    assert starts[0] == 0
    assert all(e["args"]["layer"] == 1 for e in work[-10 * per_batch :])


def test_a_trace_that_cannot_be_written(small, tmp_path) -> None:
    with pytest.raises(OSError, match="No such file or directory") as error:
        small.engine.trace(tmp_path / "missing" / "trace.json")
    assert "missing" in str(error.value)
