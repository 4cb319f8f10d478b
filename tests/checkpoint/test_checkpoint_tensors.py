"""Checkpoint.tensor: single tensors as torch tensors, of every dtype, which nobody can harm the file by."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
from checkpoint_edits import GATE, edit_tensors, surround_tensors

import moerun
from moerun.errors import CheckpointError


def test_writing_into_a_tensor_changes_neither_the_file_nor_the_experts(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    checkpoint = moerun.Checkpoint(folder)
    memory = checkpoint.experts(1)
    tensor = checkpoint.tensor(GATE)
    before = tensor.clone()
    tensor.fill_(7)
    assert torch.equal(checkpoint.tensor(GATE), before)
    expected = before.numpy().tobytes()
    assert ctypes.string_at(int(memory.gate[2]), len(expected)) == expected
    assert (folder / "model.safetensors").read_bytes() == content
    checkpoint.close()
    assert tensor.eq(7).all()


def test_tensors_that_are_empty_scalar_or_of_other_dtypes(folder: Path) -> None:
    extra = {
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
        "fp8": torch.arange(4.0).to(torch.float8_e4m3fn),
        "long": torch.tensor([2**40, -1]),
        "bool": torch.tensor([True, False]),
    }
    edit_tensors(folder, lambda tensors: tensors.update(extra))
    checkpoint = moerun.Checkpoint(folder)
    for name, tensor in extra.items():
        found = checkpoint.tensor(name)
        assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
        assert found.float().tolist() == tensor.float().tolist()


def test_tensors_that_torch_cannot_have(folder: Path) -> None:
    after = {"six": ("F6_E2M3", [4], bytes(3)), "odd": ("F32", [1], bytes(4))}
    file = surround_tensors(folder, before={}, after=after)
    checkpoint = moerun.Checkpoint(folder)
    with pytest.raises(
        CheckpointError, match=f"{file}: tensor 'six': expected a dtype .* found dtype F6_E2M3"
    ):
        checkpoint.tensor("six")
    with pytest.raises(CheckpointError, match=f"{file}: tensor 'odd': expected an offset .* found"):
        checkpoint.tensor("odd")
    with pytest.raises(
        CheckpointError, match=f"{folder}: tensor 'none': expected a tensor of this name, found"
    ):
        checkpoint.tensor("none")
