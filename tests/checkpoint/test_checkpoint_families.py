"""All families, as transformers saves them: the addresses lead to the parameters of the model."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

import moerun
from moerun.layer_spec import ExpertMemory
from random_checkpoints import FAMILIES, save_random_checkpoint

# Bits are compared, not numbers.
BITS = {"fp32": (np.uint32, torch.int32), "fp16": (np.uint16, torch.int16), "bf16": (np.uint16, torch.int16)}
SAVED = [
    pytest.param({"dtype": "fp32"}, id="per expert, fp32"),
    pytest.param({"dtype": "bf16"}, id="per expert, bf16"),
    pytest.param({"dtype": "fp16", "max_shard_size": "20KB"}, id="per expert, fp16, many shards"),
    pytest.param({"dtype": "fp32", "fused": True}, id="fused, fp32"),
    pytest.param({"dtype": "bf16", "fused": True, "max_shard_size": "50KB"}, id="fused, bf16, shards"),
]


def matrix(
    memory: ExpertMemory, address: int, shape: tuple[int, int], strides: tuple[int, int]
) -> np.ndarray:
    """What a kernel would read, as bits: element (n, k) lies n * strides[0] + k * strides[1] elements on."""
    bits = np.dtype(BITS[memory.dtype][0])
    last = (shape[0] - 1) * strides[0] + (shape[1] - 1) * strides[1]
    span = (last + 1) * bits.itemsize
    assert address % bits.itemsize == 0
    assert any(
        file.address <= address and address + span <= file.address + file.size for file in memory.owner
    )
    flat = np.frombuffer((ctypes.c_char * span).from_address(address), bits)
    return np.lib.stride_tricks.as_strided(flat, shape, [stride * bits.itemsize for stride in strides])


def bits_of(tensor: torch.Tensor, dtype: str) -> np.ndarray:
    numpy_type, torch_type = BITS[dtype]
    return tensor.detach().contiguous().view(torch_type).numpy().view(numpy_type)


def expert_weights(experts: Any, family: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """gate [E, I, H], up [E, I, H], down [E, H, I] of a layer of the model."""
    if family == "gpt_oss":
        gate_up = experts.gate_up_proj.transpose(1, 2)
        return gate_up[:, ::2], gate_up[:, 1::2], experts.down_proj.transpose(1, 2)
    return *experts.gate_up_proj.chunk(2, dim=1), experts.down_proj


def moe_blocks(model: PreTrainedModel) -> dict[int, Any]:
    """Layer index -> the experts module of each layer that has one."""
    return {
        i: layer.mlp.experts for i, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "experts")
    }


@pytest.mark.parametrize("options", SAVED)
@pytest.mark.parametrize("family", FAMILIES)
def test_addresses_lead_to_the_models_parameters(
    tmp_path: Path, family: str, options: dict[str, Any]
) -> None:
    model = save_random_checkpoint(family, tmp_path, **options)
    blocks = moe_blocks(model)
    assert ("max_shard_size" in options) == (len(list(tmp_path.glob("*.safetensors"))) > 1)

    with moerun.Checkpoint(tmp_path) as checkpoint:
        assert checkpoint.moe_layers == list(blocks)
        assert checkpoint.expert_dtype == options["dtype"]
        for layer, experts in blocks.items():
            spec, memory = checkpoint.spec(layer), checkpoint.experts(layer)
            shape = (spec.intermediate_size, spec.hidden_size)
            weights = [bits_of(weight, memory.dtype) for weight in expert_weights(experts, family)]
            assert len(memory.gate) == len(memory.up) == len(memory.down) == len(weights[0])
            for e, (gate, up, down) in enumerate(zip(*weights, strict=True)):
                strides = memory.gate_up_strides
                np.testing.assert_array_equal(matrix(memory, int(memory.gate[e]), shape, strides), gate)
                np.testing.assert_array_equal(matrix(memory, int(memory.up[e]), shape, strides), up)
                read = matrix(memory, int(memory.down[e]), shape[::-1], memory.down_strides)
                np.testing.assert_array_equal(read, down)


@pytest.mark.parametrize("dtype", BITS)
def test_biases_are_exact_fp32_copies(tmp_path: Path, dtype: str) -> None:
    model = save_random_checkpoint("gpt_oss", tmp_path, dtype=dtype)
    checkpoint = moerun.Checkpoint(tmp_path)
    for layer, experts in moe_blocks(model).items():
        memory = checkpoint.experts(layer)
        gate_up, down = experts.gate_up_proj_bias.float().detach(), experts.down_proj_bias.float().detach()
        for found, expected in (
            (memory.gate_bias, gate_up[:, ::2]),
            (memory.up_bias, gate_up[:, 1::2]),
            (memory.down_bias, down),
        ):
            assert found is not None
            assert found.dtype == np.float32
            assert found.flags.c_contiguous
            np.testing.assert_array_equal(found, expected.numpy())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_spec_is_what_the_config_says(tmp_path: Path, family: str) -> None:
    model = save_random_checkpoint(family, tmp_path)
    config = model.config
    checkpoint = moerun.Checkpoint(tmp_path)
    assert checkpoint.family == family
    assert checkpoint.num_layers == config.num_hidden_layers
    experts = next(iter(moe_blocks(model).values()))
    for layer in checkpoint.moe_layers:
        spec = checkpoint.spec(layer)
        assert spec.num_experts == len(experts.down_proj)
        assert spec.hidden_size == config.hidden_size
        assert spec.intermediate_size == 48
        assert spec.top_k == config.num_experts_per_tok
        assert spec.bias == (family == "gpt_oss")
        assert spec.activation == ("swiglu_oai" if family == "gpt_oss" else "silu")
        assert spec.quant is None


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_can_be_had_as_torch_tensor(tmp_path: Path, family: str) -> None:
    save_random_checkpoint(family, tmp_path, dtype="bf16", max_shard_size="100KB")
    expected = {
        name: tensor for file in tmp_path.glob("*.safetensors") for name, tensor in load_file(file).items()
    }
    checkpoint = moerun.Checkpoint(tmp_path)
    assert sorted(checkpoint.tensor_names) == sorted(expected)
    assert checkpoint.total_bytes == sum(tensor.nbytes for tensor in expected.values())
    for name, tensor in expected.items():
        found = checkpoint.tensor(name)
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor), name


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("qwen3_moe", {"num_hidden_layers": 5, "decoder_sparse_step": 2}),
        ("qwen2_moe", {"num_hidden_layers": 4, "mlp_only_layers": [0, 2]}),
        ("qwen3_moe", {"num_hidden_layers": 6, "decoder_sparse_step": 3, "mlp_only_layers": [5, 99]}),
        ("deepseek_v3", {"num_hidden_layers": 4, "first_k_dense_replace": 2}),
        ("deepseek_v2", {"num_hidden_layers": 2, "first_k_dense_replace": 0}),
        ("glm4_moe", {"num_hidden_layers": 3, "first_k_dense_replace": 1}),
    ],
)
def test_dense_layers_are_left_out(
    tmp_path: Path, family: str, overrides: dict[str, Any], fused: bool
) -> None:
    model = save_random_checkpoint(family, tmp_path, fused=fused, **overrides)
    checkpoint = moerun.Checkpoint(tmp_path)
    assert checkpoint.num_layers == overrides["num_hidden_layers"]
    assert checkpoint.moe_layers == list(moe_blocks(model))
    for layer in set(range(checkpoint.num_layers)) - set(checkpoint.moe_layers):
        with pytest.raises(ValueError, match=f"layer {layer} has no experts"):
            checkpoint.experts(layer)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bare_model_without_its_head(tmp_path: Path, family: str) -> None:
    model = save_random_checkpoint(family, tmp_path / "whole")
    model.model.save_pretrained(tmp_path / "bare")
    bare, whole = moerun.Checkpoint(tmp_path / "bare"), moerun.Checkpoint(tmp_path / "whole")
    assert not any(name.startswith("model.") for name in bare.tensor_names)
    assert bare.moe_layers == whole.moe_layers
    layer = bare.moe_layers[-1]
    experts = moe_blocks(model)[layer]
    gate = bits_of(expert_weights(experts, family)[0][1], "fp32")
    memory = bare.experts(layer)
    np.testing.assert_array_equal(
        matrix(memory, int(memory.gate[1]), gate.shape, memory.gate_up_strides), gate
    )
