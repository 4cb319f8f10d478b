"""Experts' tensors that are refused when a checkpoint is opened, by file, tensor, expected and found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from checkpoint_edits import GATE, assert_refused, edit_config, edit_tensors, surround_tensors
from safetensors.torch import load_file

from random_checkpoints import save_random_checkpoint


def test_a_missing_expert(folder: Path) -> None:
    edit_tensors(
        folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".1.mlp.experts.2." in name]
    )
    assert_refused(folder, str(folder), f"tensor '{GATE}'", "expected shape [48, 64]", "found no tensor")


@pytest.mark.parametrize("projection", ["gate", "up", "down"])
def test_a_missing_projection(folder: Path, projection: str) -> None:
    name = GATE.replace("gate", projection)
    edit_tensors(folder, lambda tensors: tensors.pop(name))
    assert_refused(folder, str(folder), f"tensor '{name}'", "found no tensor of this name")


def test_a_missing_layer(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=3)
    assert_refused(folder, "tensor 'model.layers.2.mlp.experts.0.gate_proj.weight'", "found no tensor")


def test_more_experts_in_the_config_than_in_the_files(folder: Path) -> None:
    edit_config(folder, num_experts=None, num_local_experts=10_000)
    assert_refused(folder, "tensor 'model.layers.0.mlp.experts.6.gate_proj.weight'", "found no tensor")


def test_a_wrong_shape(folder: Path) -> None:
    file = edit_tensors(folder, lambda tensors: tensors.update({GATE: torch.zeros(64, 48)}))
    assert_refused(folder, str(file), f"tensor '{GATE}'", "expected shape [48, 64]", "found [64, 48]")


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_a_wrong_shape_of_fused_experts(tmp_path: Path, family: str) -> None:
    save_random_checkpoint(family, tmp_path, fused=True)
    name = "model.layers.1.mlp.experts.down_proj"
    file = edit_tensors(
        tmp_path, lambda tensors: tensors.update({name: tensors[name].transpose(1, 2).contiguous()})
    )
    found = list(load_file(file)[name].shape)
    expected = [found[0], found[2], found[1]]
    assert_refused(tmp_path, str(file), f"tensor '{name}'", f"expected shape {expected}", f"found {found}")


@pytest.mark.parametrize("name", ["gate_up_proj_bias", "down_proj_bias"])
def test_a_missing_bias(tmp_path: Path, name: str) -> None:
    save_random_checkpoint("gpt_oss", tmp_path)
    full_name = f"model.layers.1.mlp.experts.{name}"
    edit_tensors(tmp_path, lambda tensors: tensors.pop(full_name))
    assert_refused(tmp_path, f"tensor '{full_name}'", "expected shape [6, ", "found no tensor")


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8"), (torch.float64, "F64")]
)
def test_a_dtype_that_is_not_supported(folder: Path, dtype: torch.dtype, name: str) -> None:
    file = edit_tensors(folder, lambda tensors: tensors.update({GATE: tensors[GATE].to(dtype)}))
    assert_refused(
        folder, str(file), f"tensor '{GATE}'", "expected one of BF16, F16, F32", f"found dtype {name}"
    )


def test_experts_of_different_dtypes(folder: Path) -> None:
    file = edit_tensors(folder, lambda tensors: tensors.update({GATE: tensors[GATE].bfloat16()}))
    assert_refused(folder, str(file), f"tensor '{GATE}'", "expected F32, as 'model.layers.0.", "found BF16")


def test_no_experts_at_all(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".experts." in name])
    example = "model.layers.L.mlp.experts.{expert}.gate_proj.weight"
    assert_refused(folder, str(folder), f"expected experts named like '{example}'", "found none among")


def test_experts_under_other_names_are_shown(folder: Path) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("_proj.weight") and ".experts." in name]:
            tensors[name.replace("weight", "qweight")] = tensors.pop(name)

    edit_tensors(folder, rename)
    assert_refused(folder, str(folder), "found none among", ".qweight'")


def test_an_offset_that_is_not_a_multiple_of_the_element_size(folder: Path) -> None:
    file = surround_tensors(folder, before={"odd": b"x"}, after={})
    assert_refused(
        folder, str(file), "expected an offset in the file that is a multiple of", "4 bytes", "found"
    )


def test_a_truncated_file(folder: Path) -> None:
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    assert_refused(folder, str(file), "tensor '", "expected its bytes up to", "truncated")
