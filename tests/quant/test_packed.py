"""Readers of quantised checkpoints: every number arrives as its writer meant it; what has none is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packed_checkpoints import (
    AWQ_CONFIG,
    FP8_CONFIG,
    GPTQ_CONFIG,
    add_to_config,
    awq,
    block_fp8,
    compressed_config,
    gptq,
    pack_quantized,
    save_mxfp4,
    save_packed,
)
from safetensors.torch import load_file, save_file

from blob_oracle import Layout
from moerun import Checkpoint, CheckpointError, Engine, ExpertBlobs
from quantised import bytes_of
from random_checkpoints import save_random_checkpoint


def read(folder: Path) -> tuple[Checkpoint, Layout, list[dict[str, np.ndarray]]]:
    """The first layer's experts, through the reader and the oracle's decoding."""
    checkpoint = Checkpoint(folder)
    spec, blobs = checkpoint.spec(0), checkpoint.experts(0)
    assert isinstance(blobs, ExpertBlobs)
    assert blobs.format == checkpoint.expert_dtype
    layout = Layout(blobs.format, spec.hidden_size, spec.intermediate_size, spec.bias)
    return checkpoint, layout, [layout.weights(blob) for blob in bytes_of(blobs, layout)]


def assert_same(found: list[dict[str, np.ndarray]], expected: list[dict[str, torch.Tensor]]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        for name in ("gate", "up", "down"):
            assert (ours[name] == theirs[name].numpy()).all(), name


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_compressed_tensors(tmp_path: Path, group: int, symmetric: bool, dtype: torch.dtype) -> None:
    expected = save_packed(
        tmp_path, pack_quantized(group, symmetric, dtype), compressed_config(group, symmetric)
    )
    checkpoint, _, found = read(tmp_path)
    assert checkpoint.expert_dtype == f"int4{'' if symmetric else 'z'}_g{group}"
    assert_same(found, expected)


@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize(("version", "stored_zero"), [(None, 7), ("gptq", 7), ("gptq_v2", 8)])
def test_gptq(tmp_path: Path, group: int, version: str | None, stored_zero: int) -> None:
    config = {**GPTQ_CONFIG, "group_size": group, "checkpoint_format": version}
    expected = save_packed(tmp_path, gptq(group, stored_zero), config)
    checkpoint, _, found = read(tmp_path)
    assert checkpoint.expert_dtype == f"int4_g{group}"
    assert_same(found, expected)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_awq(tmp_path: Path, group: int) -> None:
    expected = save_packed(tmp_path, awq(group), {**AWQ_CONFIG, "group_size": group})
    checkpoint, _, found = read(tmp_path)
    assert checkpoint.expert_dtype == f"int4z_g{group}"
    assert_same(found, expected)


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("hidden", "inter"), [(256, 128), (192, 136)])
def test_block_fp8(tmp_path: Path, scale_dtype: torch.dtype, hidden: int, inter: int) -> None:
    expected = save_packed(tmp_path, block_fp8(scale_dtype), FP8_CONFIG, hidden, inter)
    checkpoint, _, found = read(tmp_path)
    assert checkpoint.expert_dtype == "fp8_b128"
    assert_same(found, expected)


def test_mxfp4_as_transformers_reads_it(tmp_path: Path) -> None:
    expected = save_mxfp4(tmp_path)
    checkpoint, layout, found = read(tmp_path)
    assert checkpoint.expert_dtype == "mxfp4"
    assert_same(found, expected)
    blobs = checkpoint.experts(0)
    assert isinstance(blobs, ExpertBlobs)
    bias = layout.section(bytes_of(blobs, layout)[0], "gate_up_bias").view(np.float32)
    both = checkpoint.tensor("model.layers.0.mlp.experts.gate_up_proj_bias")[0].float().numpy()
    assert (bias == np.concatenate([both[0::2], both[1::2]])).all()


def test_padding_means_zero(tmp_path: Path) -> None:
    save_packed(tmp_path, pack_quantized(32, False), compressed_config(32, False), hidden=96, inter=32)
    blobs = Checkpoint(tmp_path).experts(0)
    layout = Layout("int4z_g32", 96, 32, False)
    padded = layout.padded_matrix(bytes_of(blobs, layout)[0], "gate_up")
    assert padded.shape[1] == 128
    assert (padded[:, 96:] == 0).all()


def test_a_layer_computes_with_what_was_read(tmp_path: Path) -> None:
    experts = save_packed(tmp_path, pack_quantized(64, True), compressed_config(64, True))
    x = torch.randn(4, 256, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[0], [1], [2], [0]])
    with Engine(isa="ref", cpu_threads=1) as engine:
        layer = engine.add_layer_from(Checkpoint(tmp_path), 0)
        found = layer.forward(x, ids, torch.ones(4, 1))
    for token in range(4):
        e = experts[int(ids[token])]
        h = torch.nn.functional.silu(e["gate"] @ x[token].double()) * (e["up"] @ x[token].double())
        expected = e["down"] @ h
        assert (found[token] - expected).abs().max() <= 2.0**-24 * 256 * 4 * expected.abs().max()


def test_packed_experts_cannot_become_another_format(tmp_path: Path) -> None:
    save_packed(tmp_path, block_fp8(), FP8_CONFIG)
    with (
        Engine(isa="ref", cpu_threads=1) as engine,
        pytest.raises(ValueError, match="stored as fp8_b128 and cannot become int4_g32"),
    ):
        engine.add_layer_from(Checkpoint(tmp_path), 0, quant="int4_g32")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**GPTQ_CONFIG, "group_size": 128, "desc_act": True}, "GPTQ with desc_act True"),
        ({**GPTQ_CONFIG, "group_size": 128, "sym": False}, "GPTQ with sym False"),
        ({**GPTQ_CONFIG, "group_size": 128, "bits": 8}, "GPTQ with bits 8"),
        ({**GPTQ_CONFIG, "group_size": -1}, "GPTQ with group_size -1"),
        ({**AWQ_CONFIG, "group_size": 128, "version": "gemv"}, "AWQ with version 'gemv'"),
        ({**FP8_CONFIG, "weight_block_size": None}, "fp8 with weight_block_size None"),
        (compressed_config(128, True, num_bits=8), "compressed-tensors with num_bits 8"),
        (compressed_config(128, True, strategy="channel"), "compressed-tensors with strategy 'channel'"),
        (compressed_config(128, True, actorder="group"), "compressed-tensors with actorder 'group'"),
        (compressed_config(128, True) | {"format": "float-quantized"}, "format 'float-quantized'"),
        (compressed_config(128, True) | {"config_groups": {}}, "other than one group"),
        ({"quant_method": "bitsandbytes"}, "quantised as 'bitsandbytes'"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "quantised as 'modelopt'"),
        ("awq", "quantised as 'awq'"),
        ({}, "quantised as None"),
    ],
)
def test_what_has_no_reader_is_named(tmp_path: Path, config: Any, words: str) -> None:
    save_random_checkpoint("qwen3_moe", tmp_path)
    add_to_config(tmp_path, config)
    with pytest.raises(CheckpointError, match="quantization_config") as caught:
        Checkpoint(tmp_path)
    assert words in str(caught.value)


def test_experts_that_are_not_what_the_config_says(tmp_path: Path) -> None:
    save_random_checkpoint("qwen3_moe", tmp_path)
    add_to_config(tmp_path, {**AWQ_CONFIG, "group_size": 32})
    with pytest.raises(CheckpointError, match=r"experts named like .*gate_proj.qweight"):
        Checkpoint(tmp_path)


def test_sizes_that_do_not_fit_the_group(tmp_path: Path) -> None:
    save_packed(tmp_path, pack_quantized(32, True), compressed_config(32, True), hidden=96, inter=64)
    add_to_config(tmp_path, compressed_config(128, True))
    with pytest.raises(CheckpointError, match="groups of 128"):
        Checkpoint(tmp_path)


def edit(folder: Path, name: str, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors[name])
    save_file(tensors, folder / "model.safetensors")


def test_damaged_parts_are_named(tmp_path: Path) -> None:
    save_packed(tmp_path, gptq(32), {**GPTQ_CONFIG, "group_size": 32})
    name = "model.layers.0.mlp.experts.1.up_proj.scales"
    edit(tmp_path, name, lambda t: t[:, :-1].contiguous())
    with pytest.raises(CheckpointError, match=r"experts.1.up_proj.scales.*expected shape"):
        Checkpoint(tmp_path)
    edit(tmp_path, name, None)
    with pytest.raises(CheckpointError, match=r"experts.1.up_proj.scales.*no tensor of this name"):
        Checkpoint(tmp_path)


def test_gptq_with_other_zero_points_is_refused(tmp_path: Path) -> None:
    save_packed(tmp_path, gptq(32, stored_zero=5), {**GPTQ_CONFIG, "group_size": 32})
    with pytest.raises(CheckpointError, match="expected symmetric weights"):
        Checkpoint(tmp_path).experts(0)


def test_scales_beyond_fp16_are_refused(tmp_path: Path) -> None:
    save_packed(tmp_path, pack_quantized(32, True), compressed_config(32, True))
    name = "model.layers.0.mlp.experts.2.down_proj.weight_scale"
    edit(tmp_path, name, lambda t: t * 1e7)
    with pytest.raises(CheckpointError, match=r"experts.2.down_proj.*range of fp16"):
        Checkpoint(tmp_path).experts(0)
