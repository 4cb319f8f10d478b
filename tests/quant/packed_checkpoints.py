"""Small checkpoints in the packings that people have, written without any code of the readers.

compressed-tensors packs with its own library; GPTQ, AWQ and block fp8 by their documentation; MXFP4 is random
bytes that transformers decodes. Each packer returns a projection's tensors and the weights that they mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from random_checkpoints import save_random_checkpoint

Packed = tuple[dict[str, torch.Tensor], torch.Tensor]
Packer = Callable[[int, int, torch.Generator], Packed]


def _codes(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 16, (rows, columns), generator=generator, dtype=torch.int32)


def _scales(*shape: int, generator: torch.Generator, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return (torch.rand(*shape, generator=generator) * 0.02 + 0.001).to(dtype)


def _words(codes: torch.Tensor, order: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """Codes [n, 8 m] -> int32 [n, m]: place order[i] of each eight goes to bits 4 i."""
    eights = codes.numpy().astype(np.uint32).reshape(len(codes), -1, 8)
    words = sum(eights[..., place] << np.uint32(4 * i) for i, place in enumerate(order))
    return torch.from_numpy(np.ascontiguousarray(words).view(np.int32))


def pack_quantized(group: int, symmetric: bool, dtype: torch.dtype = torch.bfloat16) -> Packer:
    """compressed-tensors 4-bit, by its own packing function."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    def pack(rows: int, columns: int, generator: torch.Generator) -> Packed:
        values = _codes(rows, columns, generator) - 8
        scale = _scales(rows, columns // group, generator=generator, dtype=dtype)
        tensors = {
            "weight_packed": pack_to_int32(values.to(torch.int8), 4),
            "weight_scale": scale,
            "weight_shape": torch.tensor([rows, columns]),
        }
        zero = torch.zeros(rows, columns // group, dtype=torch.int32)
        if not symmetric:
            zero = _codes(rows, columns // group, generator) - 8
            tensors["weight_zero_point"] = pack_to_int32(zero.to(torch.int8), 4, packed_dim=0).contiguous()
        expand = (scale.double().repeat_interleave(group, 1), zero.repeat_interleave(group, 1))
        return tensors, (values - expand[1]) * expand[0]

    return pack


def gptq(group: int, stored_zero: int = 7) -> Packer:
    """AutoGPTQ's packing: along K; qzeros hold the zero point less one (v1)."""

    def pack(rows: int, columns: int, generator: torch.Generator) -> Packed:
        codes = _codes(rows, columns, generator)
        scales = _scales(columns // group, rows, generator=generator)
        zeros = torch.full((columns // group, rows), stored_zero, dtype=torch.int32)
        tensors = {
            "qweight": _words(codes).T.contiguous(),
            "qzeros": _words(zeros),
            "scales": scales,
            "g_idx": (torch.arange(columns) // group).to(torch.int32),
        }
        return tensors, (codes - 8) * scales.T.double().repeat_interleave(group, 1)

    return pack


def awq(group: int) -> Packer:
    """AutoAWQ's WQLinear_GEMM: along N, in the order 0 2 4 6 1 3 5 7."""
    order = (0, 2, 4, 6, 1, 3, 5, 7)

    def pack(rows: int, columns: int, generator: torch.Generator) -> Packed:
        codes = _codes(rows, columns, generator)
        zeros = _codes(columns // group, rows, generator)
        scales = _scales(columns // group, rows, generator=generator)
        tensors = {
            "qweight": _words(codes.T.contiguous(), order),
            "qzeros": _words(zeros, order),
            "scales": scales,
        }
        zero, scale = (a.T.repeat_interleave(group, 1) for a in (zeros, scales.double()))
        return tensors, (codes - zero) * scale

    return pack


def block_fp8(scale_dtype: torch.dtype = torch.float32) -> Packer:
    """DeepSeek-V3's e4m3 with 128 x 128 blocks; the last ones may be smaller."""

    def pack(rows: int, columns: int, generator: torch.Generator) -> Packed:
        weight = (
            (torch.randn(rows, columns, generator=generator) * 100).clamp(-448, 448).to(torch.float8_e4m3fn)
        )
        blocks = (-(-rows // 128), -(-columns // 128))
        scale = _scales(*blocks, generator=generator, dtype=scale_dtype)
        full = scale.double().repeat_interleave(128, 0).repeat_interleave(128, 1)[:rows, :columns]
        return {"weight": weight, "weight_scale_inv": scale}, weight.double() * full

    return pack


GPTQ_CONFIG = {"quant_method": "gptq", "bits": 4, "sym": True, "desc_act": False}
AWQ_CONFIG = {"quant_method": "awq", "bits": 4, "zero_point": True, "version": "gemm"}
FP8_CONFIG = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}


def compressed_config(group: int, symmetric: bool, **weights: Any) -> dict[str, Any]:
    """quantization_config as llm-compressor writes it."""
    fields = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": group, "symmetric": symmetric}
    groups = {"group_0": {"targets": ["Linear"], "weights": {**fields, "actorder": None, **weights}}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}


def save_packed(
    folder: Path, packer: Packer, quantization_config: dict[str, Any], hidden: int = 256, inter: int = 128
) -> list[dict[str, torch.Tensor]]:
    """Saves a qwen3_moe of one layer; returns each expert's gate, up and down, float64."""
    save_random_checkpoint(
        "qwen3_moe",
        folder,
        num_hidden_layers=1,
        hidden_size=hidden,
        moe_intermediate_size=inter,
        num_experts=3,
    )
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    experts = []
    for expert in range(3):
        found = {}
        for name, (rows, columns) in {
            "gate": (inter, hidden),
            "up": (inter, hidden),
            "down": (hidden, inter),
        }.items():
            stem = f"model.layers.0.mlp.experts.{expert}.{name}_proj."
            del tensors[stem + "weight"]
            parts, found[name] = packer(rows, columns, generator)
            tensors |= {stem + suffix: part for suffix, part in parts.items()}
        experts.append(found)
    save_file(tensors, folder / "model.safetensors")
    add_to_config(folder, quantization_config)
    return experts


def add_to_config(folder: Path, quantization_config: Any) -> None:
    """Sets quantization_config in config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": quantization_config}))


def save_mxfp4(folder: Path) -> list[dict[str, torch.Tensor]]:
    """Saves a gpt_oss with random MXFP4 experts; returns each one's weights as transformers reads them."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    save_random_checkpoint(
        "gpt_oss", folder, "bf16", num_hidden_layers=1, hidden_size=64, intermediate_size=96
    )
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    prefix = "model.layers.0.mlp.experts."
    dense = {}
    for name, rows, columns in (("gate_up_proj", 192, 64), ("down_proj", 64, 96)):
        count = tensors.pop(prefix + name).shape[0]
        shape = (count, rows, columns // 32)
        blocks = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(118, 126, shape, generator=generator, dtype=torch.uint8)
        tensors[f"{prefix}{name}_blocks"], tensors[f"{prefix}{name}_scales"] = blocks, scales
        dense[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).double()  # [E, K, N]
    save_file(tensors, folder / "model.safetensors")
    add_to_config(folder, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    return [
        {
            "gate": dense["gate_up_proj"][expert].T[0::2],
            "up": dense["gate_up_proj"][expert].T[1::2],
            "down": dense["down_proj"][expert].T,
        }
        for expert in range(len(dense["down_proj"]))
    ]
