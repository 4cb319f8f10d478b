"""Parses and validates the header of one safetensors file, trusting nothing in it.

Format (https://github.com/huggingface/safetensors): 8 bytes little-endian header length, a JSON header, the
tensors' bytes. At least as strict as that library: the tensors must cover the rest of the file without gap or
overlap. What is returned is in range by construction. `index` calls this once per shard.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from moerun.checkpoint.problem import is_text, problem, shown
from moerun.checkpoint.source_file import MAX_JSON_BYTES, open_regular, parse_json, read_up_to

ITEM_BITS = {
    **dict.fromkeys(["F4"], 4),
    **dict.fromkeys(["F6_E2M3", "F6_E3M2"], 6),
    **dict.fromkeys(["BOOL", "U8", "I8"], 8),
    **dict.fromkeys(["F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"], 8),
    **dict.fromkeys(["U16", "I16", "F16", "BF16"], 16),
    **dict.fromkeys(["U32", "I32", "F32"], 32),
    **dict.fromkeys(["U64", "I64", "F64", "C64"], 64),
}
_FIELDS = {"dtype", "shape", "data_offsets"}
_LENGTH_BYTES = 8
# Of bits, and of each number in a header: a dimension may be large in a tensor that another one empties.
_MAX_COUNT = 2**63 - 1
DOWNLOAD_AGAIN = "Download the file again"


class TensorInfo(NamedTuple):
    """Where one tensor lies."""

    name: str
    file: Path
    dtype: str  # as safetensors spells it: "BF16", "F16", "F32", ...
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file
    nbytes: int


class Header(NamedTuple):
    """What one safetensors file holds."""

    file: Path
    file_bytes: int
    tensors: dict[str, TensorInfo]


def read_header(path: Path) -> Header:
    """Reads one file's header.

    Raises
    ------
    CheckpointError
        The file cannot be read, is truncated or too long, or its header breaks the format in any way; the
        message names file, tensor, what was expected and what was found.
    """
    file, file_bytes = open_regular(path)
    with file:
        start = read_up_to(file, path, _LENGTH_BYTES)
        if len(start) < _LENGTH_BYTES:
            raise problem(path, "header length", "8 bytes", f"a file of {file_bytes} bytes", DOWNLOAD_AGAIN)
        length = int.from_bytes(start, "little")
        _check_length(path, length, start, file_bytes)
        text = read_up_to(file, path, length)
    if len(text) < length:
        raise problem(
            path, "header", f"{length} bytes", f"{len(text)}: the file was shortened", DOWNLOAD_AGAIN
        )
    entries = parse_json(text, path, "header", unique_keys=True)
    if not isinstance(entries, dict):
        raise problem(path, "header", "a JSON object", f"a JSON {type(entries).__name__}")
    _check_metadata(path, entries.pop("__metadata__", {}))
    data_start = _LENGTH_BYTES + length
    tensors = [_check_entry(path, name, entry, data_start) for name, entry in entries.items()]
    _check_coverage(path, tensors, data_start, file_bytes)
    return Header(path, file_bytes, {tensor.name: tensor for tensor in tensors})


def _check_length(path: Path, length: int, start: bytes, file_bytes: int) -> None:
    if start == b"version ":
        fix = "This looks like a git-lfs pointer, not the file itself: run 'git lfs pull'"
    else:
        fix = DOWNLOAD_AGAIN
    if length > MAX_JSON_BYTES:
        raise problem(path, "header length", f"at most {MAX_JSON_BYTES} bytes", f"{length} bytes", fix)
    if length > file_bytes - _LENGTH_BYTES:
        room = file_bytes - _LENGTH_BYTES
        raise problem(
            path, "header length", f"at most the {room} bytes that follow it", f"{length} bytes", fix
        )


def _check_metadata(path: Path, metadata: Any) -> None:
    if not isinstance(metadata, dict):
        raise problem(path, "__metadata__", "an object of strings", shown(metadata))
    for key, value in metadata.items():
        if not isinstance(value, str) or not is_text(key) or not is_text(value):
            raise problem(path, f"__metadata__[{shown(key)}]", "a string", shown(value))


def _check_entry(path: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    """Checks what one entry says on its own: its fields' types, and that dtype x shape fills its bytes."""
    where = f"tensor {shown(name)}"
    if not is_text(name):
        raise problem(path, where, "a name in valid Unicode", shown(name))
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise problem(path, where, "an object with dtype, shape and data_offsets", shown(entry))
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BITS:
        raise problem(path, where, f"a dtype among {', '.join(ITEM_BITS)}", shown(dtype))
    if not isinstance(shape, list) or not all(map(_is_count, shape)):
        raise problem(path, where, "a shape of non-negative integers", shown(shape))
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise problem(path, where, "data_offsets of two non-negative integers", shown(offsets))
    bits = ITEM_BITS[dtype]
    for size in shape:
        bits *= size or 1
    if bits > _MAX_COUNT:
        raise problem(path, where, "a shape that a file can hold", shown(shape))
    if 0 in shape:
        bits = 0
    begin, end = offsets
    needed = bits // 8 if bits % 8 == 0 else bits / 8
    if end - begin != needed:
        raise problem(
            path,
            where,
            f"data_offsets that span the {needed} bytes of {dtype} {shown(shape)}",
            f"{shown(offsets)}, which span {end - begin}",
        )
    return TensorInfo(name, path, dtype, tuple(shape), data_start + begin, end - begin)


def _check_coverage(path: Path, tensors: list[TensorInfo], data_start: int, file_bytes: int) -> None:
    """Checks what the entries say together: one after the other from the header's end to the file's end."""
    position, previous = data_start, "the header"
    for tensor in sorted(tensors, key=lambda t: (t.offset, t.nbytes)):
        if tensor.offset != position:
            overlap = tensor.offset < position
            raise problem(
                path,
                f"tensor {shown(tensor.name)}",
                f"data_offsets that begin at {position - data_start}, where {previous} ends",
                f"{tensor.offset - data_start}: {'an overlap' if overlap else 'a gap'} of "
                f"{abs(position - tensor.offset)} bytes",
            )
        position, previous = position + tensor.nbytes, f"tensor {shown(tensor.name)}"
        if position > file_bytes:
            raise problem(
                path,
                previous,
                f"its bytes up to {position} in the file",
                f"a file of {file_bytes} bytes: it is truncated or the offsets are out of range",
                DOWNLOAD_AGAIN,
            )
    if position != file_bytes:
        raise problem(
            path,
            "",
            f"{position} bytes, where {previous} ends",
            f"{file_bytes} bytes: something that the header does not describe follows the tensors",
            DOWNLOAD_AGAIN,
        )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_COUNT
