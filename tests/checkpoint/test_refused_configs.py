"""What is refused about a folder and its config.json: by file, field, expected and found."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_edits import assert_refused, edit_config

from moerun.checkpoint import FAMILIES
from random_checkpoints import save_random_checkpoint


def test_a_folder_without_permission(folder: Path, drop_privileges: Callable[[], None]) -> None:
    folder.chmod(0)
    drop_privileges()
    assert_refused(folder, str(folder), "found Permission denied")


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
