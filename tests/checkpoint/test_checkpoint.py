"""Checkpoint: what is refused when it is opened, by file, tensor, expected and found; lifetimes."""

from __future__ import annotations

import ctypes
import gc
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import moerun
from moerun.checkpoint import FAMILIES
from moerun.errors import CheckpointError
from random_checkpoints import save_random_checkpoint
from raw_safetensors import entry, write_safetensors

GATE = "model.layers.1.mlp.experts.2.gate_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """qwen3_moe: 2 layers, 6 experts, hidden 64, intermediate 48, per expert, fp32, one file."""
    save_random_checkpoint("qwen3_moe", tmp_path)
    return tmp_path


def edit_config(folder: Path, **fields: Any) -> Path:
    """Sets fields of config.json; None removes one."""
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **fields}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return file


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Loads model.safetensors, lets `edit` change the tensors, and saves them again."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)
    return file


def assert_refused(folder: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        moerun.Checkpoint(folder)
    for word in words:
        assert word in str(caught.value)


# The folder and its config.


def test_a_folder_without_permission(folder: Path, drop_privileges: Callable[[], None]) -> None:
    folder.chmod(0)
    drop_privileges()
    assert_refused(folder, str(folder), "found Permission denied")


def test_a_relative_path_survives_a_change_of_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    checkpoint = moerun.Checkpoint(folder.name)
    monkeypatch.chdir("/")
    assert checkpoint.path == folder
    assert checkpoint.experts(0).owner[0].path == str(folder / "model.safetensors")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    words = ("expected a folder", "found No such file", "hf download")
    assert_refused(tmp_path / "none", str(tmp_path / "none"), *words)


def test_a_file_instead_of_a_folder(folder: Path) -> None:
    assert_refused(folder / "model.safetensors", "expected a folder", "found a file")


def test_a_path_that_no_folder_has() -> None:
    assert_refused(Path("a\0b"), "expected a path", "found")
    assert_refused(Path(os.fsdecode(b"/\xff")), "expected a path", "found")


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert_refused(folder, str(folder / "config.json"), "expected a readable file", "found No such file")


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '"a"', "\xff"])
def test_a_broken_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert_refused(folder, str(folder / "config.json"), "expected", "found")


@pytest.mark.parametrize("name", ["llama", None, 7, ["qwen3_moe"]])
def test_an_unknown_family_lists_those_that_are_known(folder: Path, name: Any) -> None:
    file = edit_config(folder, model_type=name)
    assert_refused(folder, str(file), "field 'model_type'", f"found {name!r}", *FAMILIES)


@pytest.mark.parametrize(
    "field", ["hidden_size", "moe_intermediate_size", "num_hidden_layers", "num_experts_per_tok"]
)
@pytest.mark.parametrize("value", [0, -1, 1.5, "64", True, [64], 2**80])
def test_a_size_that_makes_no_sense(folder: Path, field: str, value: Any) -> None:
    file = edit_config(folder, **{field: value})
    assert_refused(folder, str(file), f"field '{field}'", "expected an integer from 1 to", f"found {value!r}")


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("qwen3_moe", ["num_experts", "num_local_experts"]),
        ("qwen3_moe", ["moe_intermediate_size"]),
        ("olmoe", ["intermediate_size"]),
        ("mixtral", ["num_local_experts"]),
        ("deepseek_v3", ["n_routed_experts"]),
        ("glm4_moe", ["hidden_size"]),
    ],
)
def test_a_size_that_is_missing(tmp_path: Path, family: str, fields: list[str]) -> None:
    save_random_checkpoint(family, tmp_path)
    file = edit_config(tmp_path, **dict.fromkeys(fields))
    assert_refused(tmp_path, str(file), *map(repr, fields), "expected a positive integer", "found no field")


@pytest.mark.parametrize("value", [None, -1, "1", 2.0])
def test_the_number_of_dense_layers(tmp_path: Path, value: Any) -> None:
    save_random_checkpoint("deepseek_v2", tmp_path)
    file = edit_config(tmp_path, first_k_dense_replace=value)
    assert_refused(
        tmp_path, str(file), "field 'first_k_dense_replace'", "expected an integer", f"found {value!r}"
    )


def test_more_experts_per_token_than_experts(folder: Path) -> None:
    file = edit_config(folder, num_experts_per_tok=7)
    assert_refused(
        folder, str(file), "field 'num_experts_per_tok'", "expected an integer from 1 to 6", "found 7"
    )


@pytest.mark.parametrize("value", ["tanh", 1, ["silu"]])
def test_an_activation_that_is_not_supported(folder: Path, value: Any) -> None:
    file = edit_config(folder, hidden_act=value)
    assert_refused(folder, str(file), "field 'hidden_act'", "expected one of silu", f"found {value!r}")


@pytest.mark.parametrize("value", [5, ["0"], [True], {"0": 1}])
def test_a_list_of_dense_layers_that_is_none(folder: Path, value: Any) -> None:
    file = edit_config(folder, mlp_only_layers=value)
    assert_refused(folder, str(file), "field 'mlp_only_layers'", "expected a list of integers", "found")


def test_no_layer_with_experts(folder: Path) -> None:
    file = edit_config(folder, mlp_only_layers=[0, 1])
    assert_refused(folder, str(file), "expected at least one layer with experts", "found none")


@pytest.mark.parametrize("value", ["7", True, [7.0], 1e300])
def test_a_constant_that_is_not_a_number(tmp_path: Path, value: Any) -> None:
    save_random_checkpoint("gpt_oss", tmp_path)
    file = edit_config(tmp_path, swiglu_limit=value)
    assert_refused(
        tmp_path, str(file), "field 'swiglu_limit'", "expected a finite number", f"found {value!r}"
    )


# The experts' tensors.


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
    tensors = load_file(folder / "model.safetensors")
    header, body = {}, b"x"
    for name, tensor in tensors.items():
        begin, body = len(body), body + tensor.numpy().tobytes()
        header[name] = entry("F32", list(tensor.shape), begin, len(body))
    file = write_safetensors(folder / "model.safetensors", {"odd": entry("U8", [1], 0, 1), **header}, body)
    assert_refused(
        folder, str(file), "expected an offset in the file that is a multiple of", "4 bytes", "found"
    )


def test_a_truncated_file(folder: Path) -> None:
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    assert_refused(folder, str(file), "tensor '", "expected its bytes up to", "truncated")


# What may be different from what transformers writes today.


def test_fields_that_have_two_names_or_a_default(folder: Path) -> None:
    edit_config(
        folder,
        num_local_experts=None,
        num_experts=6,
        decoder_sparse_step=None,
        mlp_only_layers=None,
        hidden_act=None,
    )
    assert moerun.Checkpoint(folder).spec(0) == moerun.LayerSpec(6, 64, 48, 2)


@pytest.mark.parametrize(
    ("name", "ours"),
    [("gelu", "gelu"), ("gelu_pytorch_tanh", "gelu_tanh"), ("relu2", "relu2"), ("swish", "silu")],
)
def test_activations(folder: Path, name: str, ours: str) -> None:
    edit_config(folder, hidden_act=name)
    assert moerun.Checkpoint(folder).spec(1).activation == ours


def test_constants_of_gpt_oss(tmp_path: Path) -> None:
    save_random_checkpoint("gpt_oss", tmp_path, swiglu_limit=5.5, swiglu_alpha=1.5)
    spec = moerun.Checkpoint(tmp_path).spec(0)
    assert (spec.swiglu_limit, spec.swiglu_alpha) == (5.5, 1.5)
    edit_config(tmp_path, swiglu_limit=None, swiglu_alpha=None)
    spec = moerun.Checkpoint(tmp_path).spec(0)
    assert (spec.swiglu_limit, spec.swiglu_alpha) == (7.0, 1.702)


@pytest.mark.parametrize("root", ["model.language_model.", "language_model.model."])
def test_the_text_model_inside_of_a_larger_one(folder: Path, root: str) -> None:
    def move(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.replace("model.", root, 1)] = tensors.pop(name)
        tensors["model.visual.layers.0.mlp.weight"] = torch.zeros(2)

    edit_tensors(folder, move)
    config = json.loads((folder / "config.json").read_text())
    whole = {"model_type": "some_vl_moe", "hidden_size": 1, "text_config": config}
    (folder / "config.json").write_text(json.dumps(whole))
    checkpoint = moerun.Checkpoint(folder)
    assert checkpoint.family == "qwen3_moe"
    assert checkpoint.config == config
    assert checkpoint.moe_layers == [0, 1]

    edit_config(folder, quantization_config={"quant_method": "awq"})
    assert_refused(folder, "found AWQ with bits None")


def test_layers_beyond_the_models_own_are_ignored(tmp_path: Path) -> None:
    """DeepSeek-V3's files hold a layer for multi-token prediction after those that config.json counts."""
    save_random_checkpoint("deepseek_v3", tmp_path)
    extra = {"model.layers.3.mlp.experts.0.gate_proj.weight": torch.zeros(1)}
    edit_tensors(tmp_path, lambda tensors: tensors.update(extra))
    assert moerun.Checkpoint(tmp_path).moe_layers == [1, 2]


# Sizes, lifetime, views.


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
    tensors = load_file(folder / "model.safetensors")
    header, body = {}, b""
    for name, tensor in tensors.items():
        begin, body = len(body), body + tensor.numpy().tobytes()
        header[name] = entry("F32", list(tensor.shape), begin, len(body))
    end = len(body)
    header |= {"six": entry("F6_E2M3", [4], end, end + 3), "odd": entry("F32", [1], end + 3, end + 7)}
    file = write_safetensors(folder / "model.safetensors", header, body + bytes(7))
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
