"""Finds the safetensors files of a checkpoint folder and merges their headers into one table of tensors.

A folder holds model.safetensors, or shards with model.safetensors.index.json, or shards without an index.
`checkpoint` calls this; which tensors are experts is for `families` and `layout` to say.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from moerun.checkpoint.problem import is_text, problem, shown
from moerun.checkpoint.safetensors_header import DOWNLOAD_AGAIN, Header, TensorInfo, read_header
from moerun.checkpoint.source_file import read_json_object

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class TensorIndex(NamedTuple):
    """All tensors of a checkpoint by name, and each file's size at the time its header was read."""

    tensors: dict[str, TensorInfo]
    file_bytes: dict[Path, int]


def index_tensors(folder: Path) -> TensorIndex:
    """Reads every header of the folder.

    Raises
    ------
    CheckpointError
        No safetensors file, a broken header, a missing shard, a tensor that is not in the shard that the
        index names or that two shards hold, a shard outside of the folder.
    """
    if os.path.lexists(folder / SINGLE_FILE):
        return _merge([_read_shard(folder, SINGLE_FILE, named_by=folder)])
    if os.path.lexists(folder / INDEX_FILE):
        return _follow_weight_map(folder)
    names = sorted(file.name for file in folder.glob("*.safetensors"))
    if not names:
        others = sorted(file.name for pattern in ("*.bin", "*.pt", "*.gguf") for file in folder.glob(pattern))
        found = f"only {', '.join(others[:3])}" if others else "none of them"
        raise problem(folder, "", f"{SINGLE_FILE}, {INDEX_FILE} or other *.safetensors files", found)
    return _merge([_read_shard(folder, name, named_by=folder) for name in names])


def _follow_weight_map(folder: Path) -> TensorIndex:
    """The index decides: exactly the tensors that it lists, each in the shard that it names."""
    index_file = folder / INDEX_FILE
    weight_map = read_json_object(index_file, unique_keys=True).get("weight_map")
    if not isinstance(weight_map, dict):
        raise problem(
            index_file, "field 'weight_map'", "an object of tensor and file names", shown(weight_map)
        )
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            raise problem(index_file, f"tensor {shown(name)}", "the name of a file", shown(shard))
    headers: dict[str, Header] = {}
    for name, shard in weight_map.items():
        if shard not in headers:
            headers[shard] = _read_shard(folder, shard, index_file, f"tensor {shown(name)}")
    tensors = {}
    for name, shard in weight_map.items():
        tensor = headers[shard].tensors.get(name)
        if tensor is None:
            expected = f"to be in this file, as {INDEX_FILE} says"
            raise problem(folder / shard, f"tensor {shown(name)}", expected, "no such tensor in it")
        tensors[name] = tensor
    return TensorIndex(tensors, {header.file: header.file_bytes for header in headers.values()})


def _merge(headers: list[Header]) -> TensorIndex:
    tensors: dict[str, TensorInfo] = {}
    for header in headers:
        for name, tensor in header.tensors.items():
            other = tensors.setdefault(name, tensor)
            if other is not tensor:
                expected = "every tensor in one file"
                raise problem(header.file, f"tensor {shown(name)}", expected, f"it in {other.file.name} too")
    return TensorIndex(tensors, {header.file: header.file_bytes for header in headers})


def _read_shard(folder: Path, shard: str, named_by: Path, where: str = "") -> Header:
    """Reads the header of a shard that `named_by`, index or folder, names; `where` is a tensor in it."""
    if "\0" in shard or not is_text(shard):
        raise problem(named_by, "", "file names in valid Unicode", shown(shard))
    path = folder / shard
    if not _stays_inside(folder, path):
        raise problem(
            named_by,
            f"file {shown(shard)}",
            f"a file inside of {folder}",
            f"one that lies at {os.path.realpath(path)}",
            "Put the files themselves into the folder, or pass the folder that holds them",
        )
    if not os.path.lexists(path):
        raise problem(path, where, f"this file, as {named_by.name} says", "no such file", DOWNLOAD_AGAIN)
    return read_header(path)


def _stays_inside(folder: Path, path: Path) -> bool:
    """Whether a path, all links followed, ends in the folder or in the blobs of its Hugging Face cache entry.

    The cache stores models--x--y/snapshots/REVISION/FILE as a link to models--x--y/blobs/HASH.
    """
    # Not Path.resolve, which raises on a link to itself: opening the file then says what is wrong with it.
    allowed = [Path(os.path.realpath(folder))]
    if allowed[0].parent.name == "snapshots":
        allowed.append(allowed[0].parent.parent / "blobs")
    return any(Path(os.path.realpath(path)).is_relative_to(root) for root in allowed)
