"""What config.json and the names of tensors may look like beyond what transformers writes today."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoint_edits import assert_refused, edit_config, edit_tensors

import moerun
from random_checkpoints import save_random_checkpoint


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
