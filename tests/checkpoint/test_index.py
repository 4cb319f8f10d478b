"""Shards: which files belong to a checkpoint, with and without an index, and none outside of its folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from moerun.checkpoint.index import INDEX_FILE, SINGLE_FILE, index_tensors
from moerun.errors import CheckpointError
from raw_safetensors import entry, write_safetensors


def shard(path: Path, *names: str) -> Path:
    """A file with one byte for each of the tensors."""
    header = {name: entry("U8", [1], at, at + 1) for at, name in enumerate(names)}
    return write_safetensors(path, header, bytes(len(names)))


def write_index(folder: Path, weight_map: Any) -> Path:
    file = folder / INDEX_FILE
    file.write_text(json.dumps({"metadata": {"total_size": 2}, "weight_map": weight_map}))
    return file


def assert_refused(folder: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        index_tensors(folder)
    for word in words:
        assert word in str(caught.value)


def files_of(folder: Path) -> dict[str, str]:
    return {
        name: str(tensor.file.relative_to(folder)) for name, tensor in index_tensors(folder).tensors.items()
    }


def test_one_file(tmp_path: Path) -> None:
    file = shard(tmp_path / SINGLE_FILE, "a", "b")
    index = index_tensors(tmp_path)
    assert files_of(tmp_path) == {"a": SINGLE_FILE, "b": SINGLE_FILE}
    assert index.file_bytes == {file: file.stat().st_size}


def test_shards_with_an_index(tmp_path: Path) -> None:
    shard(tmp_path / "1.safetensors", "a", "b")
    (tmp_path / "more").mkdir()
    shard(tmp_path / "more" / "2.safetensors", "c")
    weight_map = {"a": "1.safetensors", "b": "1.safetensors", "c": "more/2.safetensors"}
    write_index(tmp_path, weight_map)
    assert files_of(tmp_path) == weight_map


def test_files_and_tensors_that_the_index_does_not_list_are_not_looked_at(tmp_path: Path) -> None:
    shard(tmp_path / "1.safetensors", "a", "other")
    (tmp_path / "consolidated.safetensors").write_bytes(b"broken")
    write_index(tmp_path, {"a": "1.safetensors"})
    assert files_of(tmp_path) == {"a": "1.safetensors"}


def test_shards_without_an_index(tmp_path: Path) -> None:
    shard(tmp_path / "x-1.safetensors", "a")
    shard(tmp_path / "x-2.safetensors", "b")
    assert files_of(tmp_path) == {"a": "x-1.safetensors", "b": "x-2.safetensors"}


def test_a_single_file_counts_before_an_index_as_in_transformers(tmp_path: Path) -> None:
    shard(tmp_path / SINGLE_FILE, "a")
    write_index(tmp_path, {"b": "gone.safetensors"})
    assert files_of(tmp_path) == {"a": SINGLE_FILE}


def test_no_safetensors_file(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    assert_refused(tmp_path, str(tmp_path), SINGLE_FILE, INDEX_FILE, "found only pytorch_model.bin")


def test_a_missing_shard(tmp_path: Path) -> None:
    shard(tmp_path / "1.safetensors", "a")
    write_index(tmp_path, {"a": "1.safetensors", "b": "2.safetensors"})
    words = ("tensor 'b'", f"expected this file, as {INDEX_FILE} says", "found no such file", "Download")
    assert_refused(tmp_path, str(tmp_path / "2.safetensors"), *words)


def test_a_tensor_that_is_not_in_its_shard(tmp_path: Path) -> None:
    shard(tmp_path / "1.safetensors", "a")
    shard(tmp_path / "2.safetensors", "b")
    write_index(tmp_path, {"a": "1.safetensors", "b": "1.safetensors"})
    assert_refused(
        tmp_path, str(tmp_path / "1.safetensors"), "tensor 'b'", "expected to be in this", "found no"
    )


def test_a_tensor_in_two_shards_without_an_index(tmp_path: Path) -> None:
    shard(tmp_path / "1.safetensors", "a", "b")
    shard(tmp_path / "2.safetensors", "b")
    expected = "expected every tensor in one file"
    assert_refused(tmp_path, str(tmp_path / "2.safetensors"), "tensor 'b'", expected, "1.safetensors too")


def test_a_broken_shard(tmp_path: Path) -> None:
    shard(tmp_path / "1.safetensors", "a")
    os.truncate(shard(tmp_path / "2.safetensors", "b"), 20)
    assert_refused(tmp_path, str(tmp_path / "2.safetensors"), "header length")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"weight_map": {"a": "1"}', "[" * 100_000, "\xff"])
def test_a_broken_index(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX_FILE).write_bytes(text.encode("latin-1"))
    assert_refused(tmp_path, str(tmp_path / INDEX_FILE), "expected", "found")


def test_a_tensor_that_the_index_lists_twice(tmp_path: Path) -> None:
    (tmp_path / INDEX_FILE).write_text('{"weight_map": {"a": "1.safetensors", "a": "2.safetensors"}}')
    assert_refused(tmp_path, str(tmp_path / INDEX_FILE), "'a' occurs more than once")


def test_an_index_that_is_too_long(tmp_path: Path) -> None:
    write_index(tmp_path, {})
    os.truncate(tmp_path / INDEX_FILE, 200_000_000)  # a hole, no bytes on disk
    assert_refused(tmp_path, "expected at most 100000000 bytes of JSON", "found 200000000 bytes")


@pytest.mark.parametrize("weight_map", [None, [], "a", 1])
def test_a_weight_map_that_is_not_an_object(tmp_path: Path, weight_map: Any) -> None:
    file = write_index(tmp_path, weight_map)
    assert_refused(tmp_path, str(file), "field 'weight_map'", "expected an object", f"found {weight_map!r}")


@pytest.mark.parametrize("name", [None, 1, ["1.safetensors"], {}])
def test_a_shard_name_that_is_not_a_string(tmp_path: Path, name: Any) -> None:
    file = write_index(tmp_path, {"a": name})
    assert_refused(tmp_path, str(file), "tensor 'a'", "expected the name of a file", f"found {name!r}")


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 5000, "", ".", "a/" * 3000])
def test_a_shard_name_that_no_file_has(tmp_path: Path, name: str) -> None:
    write_index(tmp_path, {"a": name})
    assert_refused(tmp_path, str(tmp_path), "expected", "found")


# Nothing outside of the folder.


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A valid shard that must not be read: tmp_path/outside.safetensors, beside the folder tmp_path/model."""
    (tmp_path / "model").mkdir()
    return shard(tmp_path / "outside.safetensors", "a")


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "x/../../outside.safetensors", "ABSOLUTE", "link", "dir/outside.safetensors"],
)
def test_a_weight_map_that_leads_out_of_the_folder(outside: Path, name: str) -> None:
    folder = outside.parent / "model"
    (folder / "link").symlink_to(outside)
    (folder / "dir").symlink_to(outside.parent)
    file = write_index(folder, {"a": str(outside) if name == "ABSOLUTE" else name})
    assert_refused(
        folder, str(file), f"expected a file inside of {folder}", f"found one that lies at {outside}"
    )


@pytest.mark.parametrize("name", [SINGLE_FILE, "shard.safetensors"])
def test_a_link_that_leads_out_of_the_folder(outside: Path, name: str) -> None:
    folder = outside.parent / "model"
    (folder / name).symlink_to(outside)
    assert_refused(folder, name, f"expected a file inside of {folder}", f"found one that lies at {outside}")


def test_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / SINGLE_FILE).symlink_to(tmp_path / SINGLE_FILE)
    assert_refused(tmp_path, str(tmp_path / SINGLE_FILE), "expected", "found")


def test_links_inside_of_the_folder_and_a_link_to_the_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    shard(tmp_path / "model" / "real", "a")
    (tmp_path / "model" / SINGLE_FILE).symlink_to("real")
    (tmp_path / "alias").symlink_to(tmp_path / "model")
    assert files_of(tmp_path / "alias") == {"a": SINGLE_FILE}


def test_the_hugging_face_cache_keeps_its_files_beside_the_snapshot(tmp_path: Path) -> None:
    entry_folder = tmp_path / "models--org--name"
    snapshot = entry_folder / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (entry_folder / "blobs").mkdir()
    shard(entry_folder / "blobs" / "hash", "a")
    (snapshot / SINGLE_FILE).symlink_to("../../blobs/hash")
    assert files_of(snapshot) == {"a": SINGLE_FILE}

    shard(entry_folder / "elsewhere", "a")
    (snapshot / SINGLE_FILE).unlink()
    (snapshot / SINGLE_FILE).symlink_to("../../elsewhere")
    assert_refused(snapshot, f"expected a file inside of {snapshot}")
