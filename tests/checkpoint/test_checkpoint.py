"""An open checkpoint: sizes, what stays mapped for how long, files that change, an engine on top."""

from __future__ import annotations

import ctypes
import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_edits import GATE
from safetensors.torch import load_file

import moerun
from moerun.errors import CheckpointError


def test_a_relative_path_survives_a_change_of_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    checkpoint = moerun.Checkpoint(folder.name)
    monkeypatch.chdir("/")
    assert checkpoint.path == folder
    assert checkpoint.experts(0).owner[0].path == str(folder / "model.safetensors")


def test_sizes_and_repr(folder: Path) -> None:
    checkpoint = moerun.Checkpoint(str(folder))
    assert checkpoint.path == folder
    assert checkpoint.expert_bytes == 3 * 48 * 64 * 4
    for word in (str(folder), "qwen3_moe", "2 layers", "6 experts", "36,864 bytes", "fp32"):
        assert word in repr(checkpoint)
    checkpoint.close()
    assert "closed" in repr(checkpoint)


def test_memory_lives_as_long_as_its_owner(folder: Path) -> None:
    with moerun.Checkpoint(folder) as checkpoint:
        memory = checkpoint.experts(1)
    del checkpoint
    gc.collect()
    expected = load_file(folder / "model.safetensors")[GATE].numpy().tobytes()
    assert ctypes.string_at(int(memory.gate[2]), len(expected)) == expected

    def is_mapped() -> bool:
        return str(folder / "model.safetensors") in Path("/proc/self/maps").read_text()

    assert is_mapped()
    del memory
    gc.collect()
    assert not is_mapped()


def test_a_file_is_mapped_once(folder: Path) -> None:
    checkpoint = moerun.Checkpoint(folder)
    assert checkpoint.experts(0).owner == checkpoint.experts(1).owner


def test_a_closed_checkpoint_says_so(folder: Path) -> None:
    checkpoint = moerun.Checkpoint(folder)
    checkpoint.close()
    checkpoint.close()
    for use in (
        lambda: checkpoint.experts(0),
        lambda: checkpoint.tensor(GATE),
        lambda: checkpoint.prefetch(0),
    ):
        with pytest.raises(RuntimeError, match="is closed"):
            use()
    assert checkpoint.moe_layers == [0, 1]


@pytest.mark.parametrize("size", [0, 100, -1, 1])
def test_a_file_changed_between_opening_and_mapping(folder: Path, size: int) -> None:
    checkpoint = moerun.Checkpoint(folder)
    file = folder / "model.safetensors"
    before = file.stat().st_size
    os.truncate(file, before + size if abs(size) == 1 else size)
    for use in (lambda: checkpoint.experts(0), lambda: checkpoint.tensor(GATE)):
        with pytest.raises(
            CheckpointError, match=f"{file}: expected {before} bytes, found {file.stat().st_size}"
        ):
            use()


def test_prefetching_a_layer(folder: Path) -> None:
    checkpoint = moerun.Checkpoint(folder)
    checkpoint.prefetch(1)
    with pytest.raises(ValueError, match=r"layer 2 has no experts; the layers \[0, 1\] have"):
        checkpoint.prefetch(2)


@pytest.mark.parametrize(
    ("layer", "error"),
    [
        (-1, ValueError),
        (2, ValueError),
        (10**30, ValueError),
        ("0", TypeError),
        (None, TypeError),
        (1.0, TypeError),
    ],
)
def test_a_layer_index_that_is_none_of_the_layers(folder: Path, layer: Any, error: type[Exception]) -> None:
    checkpoint = moerun.Checkpoint(folder)
    for use in (checkpoint.spec, checkpoint.experts, checkpoint.prefetch):
        with pytest.raises(error):
            use(layer)


def test_an_engine_computes_from_the_mapped_file(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    x, ids = torch.randn(3, 64), torch.tensor([[0, 5], [2, 1], [5, 3]])
    weights = torch.rand(3, 2)
    with moerun.Checkpoint(folder) as checkpoint, moerun.Engine(cpu_threads=1) as engine:
        layer = engine.add_layer_from(checkpoint, 1)
        checkpoint.close()
        found = layer.forward(x, ids, weights)

    def expert(e: int, row: torch.Tensor) -> torch.Tensor:
        gate, up, down = (
            tensors[f"model.layers.1.mlp.experts.{e}.{p}_proj.weight"] for p in ("gate", "up", "down")
        )
        return down @ (torch.nn.functional.silu(gate @ row) * (up @ row))

    expected = torch.stack(
        [
            sum(w * expert(int(e), row) for e, w in zip(ids[t], weights[t], strict=True))
            for t, row in enumerate(x)
        ]
    )
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-4, atol=1e-4)
