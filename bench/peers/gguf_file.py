"""Our random checkpoint (bench/checkpoint.py) as a GGUF file, and how many bytes of one a decode step reads.

Written with the `gguf` package, under llama.cpp's names for qwen3moe. There is no tokenizer in it, since
llama-bench draws its tokens at random. As in llama.cpp's own conversion, norms and routers are fp32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from tqdm import tqdm

ARCHITECTURE = "qwen3moe"
MATRICES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
FP32 = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate_inp": "mlp.gate",
}
EXPERTS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}


def write_gguf(checkpoint: Path, file: Path) -> None:
    """Writes the bf16 GGUF file of a checkpoint of bench/checkpoint.py.

    Raises
    ------
    ImportError
        The gguf package is missing.
    """
    import gguf

    config = json.loads((checkpoint / "config.json").read_text())
    stored = _open(checkpoint)
    tensors = list(_tensors(stored, config))
    partial = file.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, ARCHITECTURE)
    _add_config(writer, config)
    for name, shape, _ in tensors:
        fp32 = _is_fp32(name)
        kind = gguf.GGMLQuantizationType.F32 if fp32 else gguf.GGMLQuantizationType.BF16
        dtype = np.dtype(np.float32 if fp32 else np.uint16)
        writer.add_tensor_info(name, shape, dtype, dtype.itemsize * int(np.prod(shape)), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, shape, parts in tqdm(tensors, desc="writing a GGUF file", disable=None):
        tensor = torch.stack([stored[part][:] for part in parts]).view(shape)
        writer.write_tensor_data((tensor.float() if _is_fp32(name) else tensor.view(torch.uint16)).numpy())
    writer.close()
    partial.rename(file)


def decode_bytes(file: Path) -> int:
    """Bytes of weights that one step of one sequence reads: all but the embedding; of the experts, top_k."""
    import gguf

    reader = gguf.GGUFReader(file)
    experts, top_k = (
        int(reader.fields[f"{ARCHITECTURE}.{key}"].contents())
        for key in ("expert_count", "expert_used_count")
    )
    size = 0
    for tensor in reader.tensors:
        if "_exps." in tensor.name:
            size += int(tensor.n_bytes) * top_k // experts
        elif not tensor.name.startswith("token_embd"):
            size += int(tensor.n_bytes)
    return size


def _add_config(writer: Any, config: dict[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")


def _open(checkpoint: Path) -> dict[str, Any]:
    """All tensors by name, as slices of mapped files."""
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())["weight_map"]
    files = {shard: safe_open(checkpoint / shard, framework="pt") for shard in set(index.values())}
    return {name: files[shard].get_slice(name) for name, shard in index.items()}


def _tensors(
    stored: dict[str, Any], config: dict[str, Any]
) -> Iterator[tuple[str, tuple[int, ...], list[str]]]:
    """Name, shape, and the names of the checkpoint's tensors that it is made of."""

    def shape(name: str) -> tuple[int, ...]:
        return tuple(stored[name].get_shape())

    def one(theirs: str, ours: str) -> tuple[str, tuple[int, ...], list[str]]:
        return f"{theirs}.weight", shape(f"{ours}.weight"), [f"{ours}.weight"]

    yield one("token_embd", "model.embed_tokens")
    yield one("output_norm", "model.norm")
    yield one("output", "lm_head")
    for i in range(config["num_hidden_layers"]):
        for theirs, ours in (MATRICES | FP32).items():
            yield one(f"blk.{i}.{theirs}", f"model.layers.{i}.{ours}")
        for theirs, ours in EXPERTS.items():
            prefix = f"model.layers.{i}.mlp.experts"
            parts = [f"{prefix}.{e}.{ours}.weight" for e in range(config["num_experts"])]
            yield f"blk.{i}.{theirs}.weight", (len(parts), *shape(parts[0])), parts


def _is_fp32(name: str) -> bool:
    return name.split(".")[-2] in (*FP32, "output_norm")
