"""Thousands of damaged files: each is refused with a CheckpointError, or opens with all tensors in range.

The damage is pseudo-random with fixed seeds. What we accept, the safetensors library must accept too. A
native crash would end the test run itself.
"""

from __future__ import annotations

import copy
import ctypes
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError, safe_open

import moerun
from moerun.checkpoint.index import INDEX_FILE
from moerun.checkpoint.safetensors_header import ITEM_BITS, Header, read_header
from moerun.errors import CheckpointError
from random_checkpoints import save_random_checkpoint
from raw_safetensors import entry, safetensors_bytes

# What a damaged field may hold instead.
STRANGE: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 0.5, 1e308, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64,
    10**30, "", "F32", "BF16", "model.safetensors", "../x", "/etc/passwd", "\0", "\ud800",
    [], [[]], {}, [0], [1, 2], [-1], [True], {"a": 1},
]  # fmt: skip

HEADER = {
    "__metadata__": {"format": "pt"},
    "a.weight": entry("BF16", [4, 6], 0, 48),
    "b.weight": entry("F32", [3, 5], 48, 108),
    "b.bias": entry("F16", [5], 108, 118),
    "empty": entry("I64", [0, 9], 118, 118),
    "scalar": entry("F64", [], 118, 126),
    "codes": entry("F4", [4], 126, 128),
}
BODY = bytes(range(128))


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values inside of a JSON value."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from places(child, (*path, key))


def damage_json(document: Any, rng: random.Random) -> str:
    """JSON text of a copy in which one to three values, keys or characters are wrong."""
    document = copy.deepcopy(document)
    for _ in range(rng.randint(1, 3)):
        *way, last = rng.choice(list(places(document)) or [()]) or [None]
        if last is None:
            return json.dumps(rng.choice(STRANGE))
        parent = document
        for key in way:
            parent = parent[key]
        old = parent[last]
        kind = rng.randrange(6)
        if kind == 0:
            parent[last] = copy.deepcopy(rng.choice(STRANGE))
        elif kind == 1 and type(old) is int:
            parent[last] = old + rng.choice([-8, -2, -1, 1, 2, 8, 2**32])
        elif kind == 2:
            del parent[last]
        elif kind == 3 and isinstance(parent, dict):
            parent[rng.choice(["a.weight", "x", "shape", "__metadata__"])] = parent.pop(last)
        elif kind == 4 and len(parent) > 1:
            other = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
            parent[last], parent[other] = parent[other], parent[last]
        elif isinstance(parent, list):
            parent.insert(rng.randint(0, len(parent)), copy.deepcopy(rng.choice(STRANGE)))
        if not isinstance(document, (dict, list)) or not document:
            break
    text = json.dumps(document)
    if rng.random() < 0.1 and isinstance(document, dict) and document:  # one key twice
        key = rng.choice(list(document))
        text = f"{text[:-1]}, {json.dumps(key)}: {json.dumps(document[key])}}}"
    return text


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """A copy with some bits flipped, bytes replaced, removed, repeated, or cut off."""
    damaged = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(damaged)) if damaged else 0
        kind = rng.randrange(6)
        if kind == 0 and damaged:
            damaged[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and damaged:
            damaged[at] = rng.choice(b'0123456789{}[]":,-.eE \\\x00\xff')
        elif kind == 2:
            del damaged[at : at + rng.randint(1, 16)]
        elif kind == 3:
            damaged[at:at] = damaged[at : at + rng.randint(1, 64)]
        elif kind == 4:
            del damaged[at:]
        else:
            damaged += rng.randbytes(rng.randint(1, 16))
    return bytes(damaged)


def damaged_file(rng: random.Random) -> bytes:
    """One safetensors file with something wrong: in its bytes, in the length field, or in the JSON."""
    intact = safetensors_bytes(HEADER, BODY)
    kind = rng.randrange(4)
    if kind == 0:
        return damage_bytes(intact, rng)
    if kind == 1:
        length = rng.choice(
            [rng.getrandbits(64), rng.getrandbits(rng.randint(1, 40)), rng.randint(0, len(intact))]
        )
        return safetensors_bytes(HEADER, BODY, length)
    body = BODY if rng.random() < 0.8 else BODY[: rng.randrange(len(BODY))]
    return safetensors_bytes(damage_json(HEADER, rng).encode(), body)


def assert_in_range(header: Header, path: Path) -> None:
    """All tensors lie in the file after the header, one after the other, as long as dtype and shape say."""
    content = path.read_bytes()
    assert header.file_bytes == len(content)
    position = 8 + int.from_bytes(content[:8], "little")
    for tensor in sorted(header.tensors.values(), key=lambda t: (t.offset, t.nbytes)):
        bits = ITEM_BITS[tensor.dtype]
        for size in tensor.shape:
            bits *= size
        assert tensor.offset == position
        assert tensor.nbytes * 8 == bits
        position += tensor.nbytes
    assert position == len(content)


@pytest.mark.parametrize("seed", range(10))
def test_a_damaged_file_is_refused_or_in_range(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = tmp_path / "model.safetensors"
    messages = []
    for _ in range(400):
        path.write_bytes(damaged_file(rng))
        try:
            header = read_header(path)
        except CheckpointError as error:
            messages.append(str(error))
            continue
        assert_in_range(header, path)
        with safe_open(path, "np") as theirs:  # raises if the library refuses what we accept
            assert set(theirs.keys()) == set(header.tensors)
            assert all(tuple(theirs.get_slice(n).get_shape()) == t.shape for n, t in header.tensors.items())
    assert all(str(path) in message for message in messages)
    # Not everything that is changed is damaged (a renamed tensor is not): both ways out are taken.
    assert 200 < len(messages) < 400


def test_the_library_accepts_what_was_not_damaged(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes(HEADER, BODY))
    assert_in_range(read_header(path), path)
    with safe_open(path, "np") as theirs:
        assert set(theirs.keys()) == HEADER.keys() - {"__metadata__"}
    path.write_bytes(safetensors_bytes(HEADER, BODY[:-1]))
    with pytest.raises(SafetensorError):
        safe_open(path, "np")


# Whole checkpoints.


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two layers and three experts in several shards, not to be written to."""
    folder = tmp_path_factory.mktemp("intact")
    save_random_checkpoint("qwen3_moe", folder, "bf16", num_experts=3, max_shard_size="60KB")
    return folder


def read_everything(folder: Path) -> None:
    """Opens a checkpoint and reads every byte that it says is an expert's."""
    with moerun.Checkpoint(folder) as checkpoint:
        for layer in checkpoint.moe_layers:
            memory, third = checkpoint.experts(layer), checkpoint.expert_bytes // 3
            for address in (*memory.gate, *memory.up, *memory.down):
                assert len(ctypes.string_at(int(address), third)) == third
        for name in checkpoint.tensor_names:
            checkpoint.tensor(name).clone()


def damage_config(folder: Path, rng: random.Random) -> None:
    file = folder / "config.json"
    file.write_text(damage_json(json.loads(file.read_text()), rng))


def damage_index(folder: Path, rng: random.Random) -> None:
    file = folder / INDEX_FILE
    file.write_text(damage_json(json.loads(file.read_text()), rng))


def damage_json_bytes(folder: Path, rng: random.Random) -> None:
    file = folder / rng.choice(["config.json", INDEX_FILE])
    file.write_bytes(damage_bytes(file.read_bytes(), rng))


def damage_shard_header(folder: Path, rng: random.Random) -> None:
    file = rng.choice(sorted(folder.glob("*.safetensors")))
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    file.write_bytes(safetensors_bytes(damage_json(json.loads(content[8:end]), rng).encode(), content[end:]))


def damage_shard_bytes(folder: Path, rng: random.Random) -> None:
    file = rng.choice(sorted(folder.glob("*.safetensors")))
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    file.write_bytes(damage_bytes(content[:end], rng) + content[end:])


def swap_files(folder: Path, rng: random.Random) -> None:
    first, second = rng.sample(sorted(folder.iterdir()), 2)
    shutil.copy(first, second)
    if rng.random() < 0.5:
        first.unlink()


@pytest.mark.parametrize(
    "damage",
    [damage_config, damage_index, damage_json_bytes, damage_shard_header, damage_shard_bytes, swap_files],
)
def test_a_damaged_checkpoint_is_refused_or_readable(
    tmp_path: Path, intact: Path, damage: Callable[[Path, random.Random], None]
) -> None:
    rng = random.Random(1)
    folder = tmp_path / "model"
    messages = []
    for _ in range(300):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(intact, folder)
        damage(folder, rng)
        try:
            read_everything(folder)
        except CheckpointError as error:
            messages.append(str(error))
    assert all(str(folder) in message for message in messages)
    assert len(messages) > 30
