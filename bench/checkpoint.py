"""A random checkpoint at the shapes of Qwen3-30B-A3B with few layers, for whole-model figures (generate.py).

About 6 GB with 4 layers, written once into bench/.cache at the speed of the disk.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

CACHE = Path(__file__).resolve().parent / ".cache"
_BLOCK = 1 << 22  # every tensor is a window of a block of this many random numbers, repeated
_STD = 0.02  # of all matrices; activations stay of order one behind the norms

Tensors = Iterator[tuple[str, tuple[int, ...]]]


def random_qwen3_moe(layers: int = 4, vocab_size: int = 151_936) -> Path:
    """The folder of the checkpoint, made if it is not there yet.

    Raises
    ------
    OSError
        Too little space on the disk.
    """
    config = _config(layers, vocab_size)
    folder = CACHE / f"qwen3-moe-{layers}-layers-{vocab_size}-words"
    if (folder / "config.json").is_file() and json.loads((folder / "config.json").read_text()) == config:
        return folder

    shards = {"embeddings": list(_embeddings(config))}
    shards |= {f"layer-{i}": list(_layer(config, i)) for i in range(layers)}
    need = sum(_bytes(shape) for tensors in shards.values() for _, shape in tensors)
    CACHE.mkdir(exist_ok=True)
    free = shutil.disk_usage(CACHE).free
    if free < need + (1 << 30):
        raise OSError(f"{CACHE} needs {need / 1e9:.1f} GB and 1 GB to spare, {free / 1e9:.1f} are free")

    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    rng = np.random.default_rng(0)
    block = _bf16(rng.standard_normal(_BLOCK, dtype=np.float32) * np.float32(_STD))
    with tqdm(total=need, unit="B", unit_scale=True, desc="writing a checkpoint", disable=None) as bar:
        for name, tensors in shards.items():
            _write(partial / f"{name}.safetensors", tensors, block, rng, bar)
    index = {tensor: f"{name}.safetensors" for name, tensors in shards.items() for tensor, _ in tensors}
    (partial / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": need}, "weight_map": index})
    )
    (partial / "config.json").write_text(json.dumps(config, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def _config(layers: int, vocab_size: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "dtype": "bfloat16",
        "vocab_size": vocab_size,
        "hidden_size": 2048,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "hidden_act": "silu",
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "max_position_embeddings": 40960,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-06,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "use_cache": True,
    }


def _embeddings(config: dict[str, Any]) -> Tensors:
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    yield "model.embed_tokens.weight", (vocab, hidden)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocab, hidden)


def _layer(config: dict[str, Any], layer: int) -> Tensors:
    hidden, inter, head = config["hidden_size"], config["moe_intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    prefix = f"model.layers.{layer}"
    yield f"{prefix}.input_layernorm.weight", (hidden,)
    yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
    yield f"{prefix}.self_attn.q_proj.weight", (queries, hidden)
    yield f"{prefix}.self_attn.k_proj.weight", (keys, hidden)
    yield f"{prefix}.self_attn.v_proj.weight", (keys, hidden)
    yield f"{prefix}.self_attn.o_proj.weight", (hidden, queries)
    yield f"{prefix}.self_attn.q_norm.weight", (head,)
    yield f"{prefix}.self_attn.k_norm.weight", (head,)
    yield f"{prefix}.mlp.gate.weight", (config["num_experts"], hidden)
    for expert in range(config["num_experts"]):
        yield f"{prefix}.mlp.experts.{expert}.gate_proj.weight", (inter, hidden)
        yield f"{prefix}.mlp.experts.{expert}.up_proj.weight", (inter, hidden)
        yield f"{prefix}.mlp.experts.{expert}.down_proj.weight", (hidden, inter)


def _write(
    path: Path,
    tensors: list[tuple[str, tuple[int, ...]]],
    block: np.ndarray,
    rng: np.random.Generator,
    bar: tqdm,
) -> None:
    """One safetensors file: the length of the header (8 bytes), the header (JSON), the numbers."""
    header, end = {}, 0
    for name, shape in tensors:
        begin, end = end, end + _bytes(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (begin, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, shape in tensors:
            if len(shape) == 1:  # the weights of a norm
                _bf16(np.ones(shape, np.float32)).tofile(file)
            else:
                _write_random(file, int(np.prod(shape)), block, rng)
            bar.update(_bytes(shape))


def _write_random(file: Any, count: int, block: np.ndarray, rng: np.random.Generator) -> None:
    begin = int(rng.integers(len(block)))
    while count > 0:
        piece = block[begin : begin + count]
        piece.tofile(file)
        count -= len(piece)
        begin = 0


def _bf16(values: np.ndarray) -> np.ndarray:
    """fp32 numbers cut to bf16, as uint16."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def _bytes(shape: tuple[int, ...]) -> int:
    return 2 * int(np.prod(shape))
