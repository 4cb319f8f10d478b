"""How tests change a checkpoint that transformers has saved, and what its refusal must say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import moerun
from moerun.errors import CheckpointError
from raw_safetensors import entry, write_safetensors

GATE = "model.layers.1.mlp.experts.2.gate_proj.weight"  # one expert's, in the `folder` of conftest.py


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


def surround_tensors(
    folder: Path, before: dict[str, bytes], after: dict[str, tuple[str, list[int], bytes]]
) -> Path:
    """Writes model.safetensors byte by byte: raw bytes before the fp32 tensors, and any (dtype, shape,
    bytes) behind them, as no library would."""
    file = folder / "model.safetensors"
    tensors = {name: ("F32", list(t.shape), t.numpy().tobytes()) for name, t in load_file(file).items()}
    header, body = {}, b""
    raw = {name: ("U8", [len(content)], content) for name, content in before.items()}
    for name, (dtype, shape, content) in {**raw, **tensors, **after}.items():
        header[name] = entry(dtype, shape, len(body), len(body) + len(content))
        body += content
    return write_safetensors(file, header, body)


def assert_refused(folder: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        moerun.Checkpoint(folder)
    for word in words:
        assert word in str(caught.value)
