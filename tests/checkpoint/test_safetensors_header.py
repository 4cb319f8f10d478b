"""The header parser: reads what the safetensors library writes, refuses all that breaks the format."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open

from moerun.checkpoint import safetensors_header
from moerun.checkpoint.safetensors_header import ITEM_BITS, read_header
from moerun.checkpoint.source_file import open_regular
from moerun.errors import CheckpointError
from raw_safetensors import entry, safetensors_bytes, write_safetensors

DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "float16": "F16",
    "int32": "I32",
    "float32": "F32",
    "int64": "I64",
    "float64": "F64",
}
ONE = entry("U8", [1], 0, 1)


def assert_refused(path: Path, *words: str) -> None:
    """The message must name the file and hold `words`: the tensor, what was expected, what was found."""
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


# What the library writes is read.

arrays = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
)
names = st.text(st.characters(codec="utf-8"), max_size=20).filter(lambda name: name != "__metadata__")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    # safetensors 0.8.0 writes a broken header for no tensors with metadata, which it does not read either.
    tensors=st.dictionaries(names, arrays, min_size=1, max_size=6),
    metadata=st.none() | st.dictionaries(names, names, max_size=3),
)
def test_what_the_library_writes_is_found_byte_for_byte(
    tmp_path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None
) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(tensors, path, metadata)
    content = path.read_bytes()

    header = read_header(path)

    assert header.file_bytes == len(content)
    assert header.tensors.keys() == tensors.keys()
    for name, array in tensors.items():
        found = header.tensors[name]
        assert (found.name, found.file, found.shape) == (name, path, array.shape)
        assert found.dtype == DTYPES[str(array.dtype)]
        assert content[found.offset : found.offset + found.nbytes] == array.tobytes()


@pytest.mark.parametrize("dtype", ITEM_BITS)
def test_every_dtype_has_the_size_that_the_library_gives_it(tmp_path: Path, dtype: str) -> None:
    path = write_safetensors(
        tmp_path / "x", {"a": entry(dtype, [8], 0, ITEM_BITS[dtype])}, bytes(ITEM_BITS[dtype])
    )
    with safe_open(path, "np") as theirs:
        assert list(theirs.keys()) == list(read_header(path).tensors)


def test_entries_may_be_listed_in_any_order_with_space_around_them(tmp_path: Path) -> None:
    header = {"b": entry("U8", [2], 1, 3), "empty": entry("F32", [0, 7], 1, 1), "a": ONE}
    path = write_safetensors(tmp_path / "x", b" " + json.dumps(header).encode() + b"\n ", b"xyz")
    tensors = read_header(path).tensors
    start = len(path.read_bytes()) - 3
    assert {name: tensors[name].offset - start for name in "ab"} == {"a": 0, "b": 1}
    assert tensors["empty"].nbytes == 0


def test_a_file_without_tensors_is_valid(tmp_path: Path) -> None:
    assert read_header(write_safetensors(tmp_path / "x", {})).tensors == {}


# The file as a whole.


@pytest.mark.parametrize("size", [0, 7])
def test_a_file_too_short_for_a_length(tmp_path: Path, size: int) -> None:
    (tmp_path / "x").write_bytes(bytes(size))
    assert_refused(tmp_path / "x", "header length", "expected 8 bytes", f"found a file of {size} bytes")


@pytest.mark.parametrize("length", [100_000_001, 2**40, 2**63, 2**64 - 1])
def test_an_absurd_header_length(tmp_path: Path, length: int) -> None:
    path = write_safetensors(tmp_path / "x", {"a": ONE}, b"x", length)
    assert_refused(path, "header length", "expected at most 100000000 bytes", f"found {length}")


def test_a_header_length_above_the_cap_in_a_file_that_has_so_many_bytes(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x", {"a": ONE}, b"x", 150_000_000)
    os.truncate(path, 200_000_000)  # a hole, no bytes on disk
    assert_refused(path, "header length", "expected at most 100000000 bytes", "found 150000000")


def test_a_header_length_beyond_the_file(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x", {"a": ONE}, b"", 1000)
    room = path.stat().st_size - 8
    assert_refused(path, "header length", f"at most the {room} bytes", "found 1000", "Download")


def test_a_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n")
    assert_refused(tmp_path / "x", "header length", "git lfs pull")


def test_a_file_shortened_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_safetensors(tmp_path / "x", {"a": ONE}, b"x")

    def open_then_shorten(file: Path) -> Any:
        opened = open_regular(file)
        os.truncate(file, 20)
        return opened

    monkeypatch.setattr(safetensors_header, "open_regular", open_then_shorten)
    assert_refused(path, "expected", "found 12", "shortened")


def test_a_missing_file(tmp_path: Path) -> None:
    assert_refused(tmp_path / "x", "expected a readable file", "found No such file")


def test_a_directory(tmp_path: Path) -> None:
    assert_refused(tmp_path, "expected a regular file", "found a directory")


def test_a_named_pipe_fails_instead_of_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    assert_refused(tmp_path / "x", "expected a regular file", "pipe")


def test_a_file_without_permission(tmp_path: Path, drop_privileges: Callable[[], None]) -> None:
    path = write_safetensors(tmp_path / "x", {})
    path.chmod(0)
    drop_privileges()
    assert_refused(path, "expected a readable file", "found Permission denied")


# The header's JSON.


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (b"{", "broken JSON"),
        (b"", "broken JSON"),
        (b'{"a": 1,}', "broken JSON"),
        (b"{}\0", "broken JSON"),
        (b"\xef\xbb\xbf{}", "broken JSON"),
        (b'{"\xff": {}}', "broken JSON ('utf-8' codec"),
        (json.dumps({"a": ONE}).encode("utf-16"), "broken JSON"),
        (b'{"a": {"dtype": "U8", "shape": [NaN], "data_offsets": [0, 1]}}', "NaN is not JSON"),
        (b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, Infinity]}}', "Infinity is not JSON"),
        (b'{"a": ' + b"[" * 1_000_000, "nesting beyond"),
        (b'{"a":' * 500_000, "nesting beyond"),
        (b"[" * 100_000 + b"]" * 100_000, "nesting beyond"),
    ],
)
def test_broken_json(tmp_path: Path, header: bytes, found: str) -> None:
    assert_refused(write_safetensors(tmp_path / "x", header, b"x"), "header: expected", found)


@pytest.mark.parametrize("header", [[], "a", 1, None, True])
def test_a_header_that_is_not_an_object(tmp_path: Path, header: Any) -> None:
    path = write_safetensors(tmp_path / "x", header, b"")
    assert_refused(path, "header: expected a JSON object", f"found a JSON {type(header).__name__}")


def test_a_tensor_that_is_listed_twice(tmp_path: Path) -> None:
    one = json.dumps(ONE)
    path = write_safetensors(tmp_path / "x", f'{{"w.a": {one}, "b": {one}, "w.a": {one}}}'.encode(), b"x")
    assert_refused(path, "header: expected", "'w.a' occurs more than once")


def test_a_field_that_is_listed_twice(tmp_path: Path) -> None:
    header = b'{"a": {"dtype": "U8", "dtype": "I8", "shape": [1], "data_offsets": [0, 1]}}'
    assert_refused(write_safetensors(tmp_path / "x", header, b"x"), "header", "'dtype' occurs more than once")


@pytest.mark.parametrize("metadata", [None, [], "pt", 1])
def test_metadata_that_is_not_an_object(tmp_path: Path, metadata: Any) -> None:
    path = write_safetensors(tmp_path / "x", {"__metadata__": metadata, "a": ONE}, b"x")
    assert_refused(path, "__metadata__: expected an object of strings", f"found {metadata!r}")


@pytest.mark.parametrize("value", [None, 1, {"b": "c"}, ["pt"], True])
def test_metadata_with_a_value_that_is_not_a_string(tmp_path: Path, value: Any) -> None:
    path = write_safetensors(tmp_path / "x", {"__metadata__": {"format": value}, "a": ONE}, b"x")
    assert_refused(path, "__metadata__['format']: expected a string", f"found {value!r}")


# One entry.


@pytest.mark.parametrize(
    "value",
    [None, 1, "U8", [], {}, {"dtype": "U8", "shape": [1]}, {**ONE, "strides": [1]}, ["U8", [1], [0, 1]]],
)
def test_an_entry_with_other_fields_than_the_three(tmp_path: Path, value: Any) -> None:
    path = write_safetensors(tmp_path / "x", {"a.b": value}, b"x")
    assert_refused(path, "tensor 'a.b': expected an object with dtype, shape and data_offsets", "found")


@pytest.mark.parametrize("dtype", ["F8", "bf16", "", None, 16, ["U8"], {"U8": 1}])
def test_an_unknown_dtype(tmp_path: Path, dtype: Any) -> None:
    path = write_safetensors(tmp_path / "x", {"a.b": entry(dtype, [1], 0, 1)}, b"x")
    assert_refused(path, "tensor 'a.b': expected a dtype among", "BF16", f"found {dtype!r}")


@pytest.mark.parametrize(
    "shape", [None, 1, "1", {}, [-1], [True], [1.0], ["1"], [None], [[1]], [2**63], [10**4000]]
)
def test_a_shape_that_is_not_a_list_of_counts(tmp_path: Path, shape: Any) -> None:
    path = write_safetensors(tmp_path / "x", {"a.b": entry("U8", shape, 0, 1)}, b"x")
    assert_refused(path, "tensor 'a.b': expected a shape of non-negative integers", "found")


def test_a_number_with_more_digits_than_python_reads(tmp_path: Path) -> None:
    header = b'{"a": {"dtype": "U8", "shape": [1' + b"0" * 100_000 + b'], "data_offsets": [0, 1]}}'
    assert_refused(write_safetensors(tmp_path / "x", header, b"x"), "expected", "found")


@pytest.mark.parametrize("shape", [[2**62, 4], [2**40, 2**40], [2**62, 2**62, 0], [2**31] * 40])
def test_a_shape_whose_product_overflows(tmp_path: Path, shape: list[int]) -> None:
    path = write_safetensors(tmp_path / "x", {"a.b": entry("F32", shape, 0, 0)})
    assert_refused(path, "tensor 'a.b': expected a shape that a file can hold", "found [")


@pytest.mark.parametrize(
    "offsets",
    [
        None,
        0,
        "01",
        {},
        [],
        [0],
        [0, 1, 1],
        [-1, 0],
        [0, -1],
        [False, True],
        [0.0, 1.0],
        ["0", "1"],
        [0, 2**64],
    ],
)
def test_offsets_that_are_not_two_counts(tmp_path: Path, offsets: Any) -> None:
    path = write_safetensors(tmp_path / "x", {"a.b": {**ONE, "data_offsets": offsets}}, b"x")
    assert_refused(path, "tensor 'a.b': expected data_offsets of two non-negative integers", "found")


@pytest.mark.parametrize(
    ("dtype", "shape", "begin", "end", "needed"),
    [
        ("BF16", [2, 2], 0, 4, 8),
        ("F32", [3], 0, 13, 12),
        ("F64", [], 0, 0, 8),
        ("U8", [4], 4, 0, 4),
        ("U8", [0], 0, 4, 0),
        ("I64", [5], 0, 2**63 - 1, 40),
    ],
)
def test_offsets_that_do_not_match_dtype_and_shape(
    tmp_path: Path, dtype: str, shape: list[int], begin: int, end: int, needed: int
) -> None:
    path = write_safetensors(tmp_path / "x", {"a.b": entry(dtype, shape, begin, end)}, bytes(4))
    words = f"tensor 'a.b': expected data_offsets that span the {needed} bytes of {dtype} {shape}"
    assert_refused(path, words, f"which span {end - begin}")


def test_a_name_that_is_not_unicode(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x", b'{"a\\ud800": ' + json.dumps(ONE).encode() + b"}", b"x")
    assert_refused(path, r"tensor 'a\ud800': expected a name in valid Unicode", "found")


# The entries together.


def test_tensors_that_overlap(tmp_path: Path) -> None:
    path = write_safetensors(
        tmp_path / "x", {"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 2, 6)}, bytes(6)
    )
    assert_refused(
        path,
        "tensor 'b': expected data_offsets that begin at 4, where tensor 'a' ends",
        "found 2: an overlap",
    )


def test_two_tensors_in_the_same_place(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x", {"a": ONE, "b": ONE}, b"x")
    assert_refused(
        path, "tensor 'b': expected data_offsets that begin at 1", "found 0: an overlap of 1 bytes"
    )


def test_a_gap_between_tensors(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x", {"a": ONE, "b": entry("U8", [1], 2, 3)}, bytes(3))
    assert_refused(
        path, "tensor 'b': expected data_offsets that begin at 1, where tensor 'a' ends", "found 2: a gap"
    )


def test_a_gap_after_the_header(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x", {"a": entry("U8", [1], 2, 3)}, bytes(3))
    assert_refused(
        path, "tensor 'a': expected data_offsets that begin at 0, where the header ends", "found 2: a gap"
    )


def test_an_empty_tensor_in_the_middle_of_another(tmp_path: Path) -> None:
    path = write_safetensors(
        tmp_path / "x", {"a": entry("U8", [4], 0, 4), "b": entry("U8", [0], 2, 2)}, bytes(4)
    )
    assert_refused(path, "tensor 'b': expected data_offsets that begin at 4", "found 2")


@pytest.mark.parametrize("missing", [1, 5, 8])
def test_a_truncated_file(tmp_path: Path, missing: int) -> None:
    header = {"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 4, 8)}
    path = write_safetensors(tmp_path / "x", header, bytes(8 - missing))
    size = path.stat().st_size
    tensor = "a" if missing > 4 else "b"
    assert_refused(
        path, f"tensor '{tensor}': expected its bytes", f"found a file of {size} bytes", "truncated"
    )


def test_bytes_after_the_last_tensor(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x", {"a": ONE}, b"xyz")
    size = path.stat().st_size
    assert_refused(path, f"expected {size - 2} bytes, where tensor 'a' ends", f"found {size} bytes")


def test_messages_stay_short_whatever_the_header_holds(tmp_path: Path) -> None:
    header = {"n" * 100_000: entry("U8", [7] * 100_000, 0, 1)}
    with pytest.raises(CheckpointError) as caught:
        read_header(write_safetensors(tmp_path / "x", header, b"x"))
    assert len(str(caught.value)) < 1000 + len(str(tmp_path))


def test_the_bytes_in_front_are_little_endian(tmp_path: Path) -> None:
    content = safetensors_bytes({"a": ONE}, b"x")
    (tmp_path / "x").write_bytes(content[7::-1] + content[8:])
    assert_refused(tmp_path / "x", "header length")
