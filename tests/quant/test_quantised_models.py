"""Quantised experts through the engine, the adapter and the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from packed_checkpoints import (
    FP8_CONFIG,
    block_fp8,
    compressed_config,
    pack_quantized,
    save_mxfp4,
    save_packed,
)
from safetensors.torch import load_file, save_file

import moerun
from blob_oracle import QUANTISED, Layout
from expert_layers import random_experts
from moerun import Checkpoint, Engine, LayerSpec
from moerun.cli import main
from quantised import bytes_of
from random_checkpoints import save_random_checkpoint

DEMO = Path(__file__).parents[2] / "examples" / "pycode-moe"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOERUN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "experts"


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_add_layer_quantises(name: str, dtype: torch.dtype) -> None:
    """The layer is the one of the decoded weights, whatever instruction set computes it."""
    experts = random_experts(3, 72, 40, dtype)
    tensors = {"gate_up": torch.cat([experts.gate, experts.up], 1), "down": experts.down}
    x = torch.randn(5, 72, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[0, 1], [1, 2], [2, 0], [1, 0], [2, 1]])
    weights = torch.rand(5, 2, generator=torch.Generator().manual_seed(2))

    from moerun.expert_tensors import memory_of
    from moerun.quant import quantise_layer

    spec = LayerSpec(3, 72, 40, top_k=2, quant=name)
    layout = Layout(name, 72, 40, False)
    decoded = [
        layout.weights(b) for b in bytes_of(quantise_layer(spec, memory_of(spec, tensors), name), layout)
    ]
    expected = np.zeros((5, 72))
    for token in range(5):
        for expert, weight in zip(ids[token].tolist(), weights[token].tolist(), strict=True):
            w, row = decoded[expert], x[token].double().numpy()
            gate = w["gate"] @ row
            expected[token] += weight * (w["down"] @ (gate / (1 + np.exp(-gate)) * (w["up"] @ row)))
    with Engine(isa="ref", cpu_threads=2) as engine:
        found = engine.add_layer(spec, tensors).forward(x, ids, weights).double().numpy()
    assert np.abs(found - expected).max() <= 4 * 72 * 2.0**-24 * np.abs(expected).max()


def test_unknown_formats_are_listed() -> None:
    with pytest.raises(ValueError, match=r"'int3' is unknown; known: .*int4_g32"):
        LayerSpec(2, 8, 8, top_k=1, quant="int3")
    with pytest.raises(ValueError, match=r"experts must be one of .*int4_g32.*got 'int3'"):
        moerun.hf.from_pretrained("nowhere", experts="int3")


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize("name", ["int8", "int4_g32", "mxfp4", "fp16"])
def test_from_pretrained(tmp_path: Path, family: str, name: str, cache: Path) -> None:
    """The model with quantised experts is the one whose experts are quantised and decoded again in torch."""
    folder = tmp_path / "model"
    save_random_checkpoint(family, folder)
    model = moerun.hf.from_pretrained(folder, experts=name, isa="ref")
    layers = model.moerun_engine.layers
    assert [layer.spec.quant for layer in layers] == [name] * len(layers)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        found = model(ids).logits
        plain = moerun.hf.from_pretrained(folder, isa="ref")(ids).logits
        again = moerun.hf.from_pretrained(folder, experts=name, isa="ref")(ids).logits
    assert (found == again).all()
    difference = (found - plain).norm() / plain.norm()
    assert 0 < difference < {"fp16": 1e-3, "int8": 0.05, "int4_g32": 0.5, "mxfp4": 0.6}[name]
    assert len(list(cache.glob("*.experts"))) == len(Checkpoint(folder).moe_layers)


@pytest.mark.parametrize("kind", ["mxfp4", "compressed-tensors", "fp8"])
def test_models_whose_experts_are_packed(tmp_path: Path, kind: str) -> None:
    """The model is the one whose experts are unpacked into bf16 or fp32 tensors."""
    folder = tmp_path / "model"
    if kind == "mxfp4":
        experts = save_mxfp4(folder)
    elif kind == "fp8":
        experts = save_packed(folder, block_fp8(), FP8_CONFIG)
    else:
        experts = save_packed(folder, pack_quantized(32, True), compressed_config(32, True))
    with torch.no_grad():
        found = moerun.hf.from_pretrained(folder, dtype="fp32", isa="ref")(torch.arange(8)[None]).logits
    unpack(folder, experts)
    with torch.no_grad():
        expected = moerun.hf.from_pretrained(folder, dtype="fp32", isa="ref")(torch.arange(8)[None]).logits
    assert torch.equal(found, expected)


def unpack(folder: Path, experts: list[dict[str, torch.Tensor]]) -> None:
    """Replaces a checkpoint's packed experts by plain ones, in fp32."""
    file = folder / "model.safetensors"
    prefix = "model.layers.0.mlp.experts."
    tensors = load_file(file)
    is_bias = "gate_up_proj_bias" in str(list(tensors))
    kept = {name: t for name, t in tensors.items() if ".experts." not in name or name.endswith("_bias")}
    if is_bias:
        pairs = [torch.stack([e["gate"], e["up"]], 1).flatten(0, 1).T for e in experts]  # take turns
        kept[f"{prefix}gate_up_proj"] = torch.stack(pairs).float().contiguous()
        kept[f"{prefix}down_proj"] = torch.stack([e["down"].T for e in experts]).float().contiguous()
    else:
        for number, expert in enumerate(experts):
            for name, weight in expert.items():
                kept[f"{prefix}{number}.{name}_proj.weight"] = weight.float().contiguous()
    save_file(kept, file)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))


def test_models_with_packed_dense_layers_are_refused(tmp_path: Path) -> None:
    save_packed(tmp_path, block_fp8(), FP8_CONFIG)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight_scale_inv"] = torch.ones(1, 1)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(moerun.CheckpointError, match=r"only experts to be quantised, found .*q_proj"):
        moerun.hf.from_pretrained(tmp_path)


def test_generate_with_quantised_experts(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    arguments = ["generate", str(DEMO), "def main():", "--max-new-tokens", "8", "--json"]
    texts = []
    for _ in range(2):
        assert main([*arguments, "--experts", "int8"]) == 0
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] == texts[1] != ""
    assert len(list(cache.glob("*.experts"))) == 6
    assert main(["info", str(DEMO), "--json"]) == 0
    size = json.loads(capsys.readouterr().out)["quantised_cache_bytes"]
    assert size == sum(file.stat().st_size for file in cache.iterdir()) > 6 * 32 * 3 * 256 * 64
