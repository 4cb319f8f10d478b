"""Opens the regular files of a checkpoint and parses their JSON; whatever goes wrong is a CheckpointError."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from moerun.checkpoint.problem import problem, shown

MAX_JSON_BYTES = 100_000_000  # the safetensors library's own limit on a header


def open_regular(path: Path) -> tuple[BinaryIO, int]:
    """Opens a file for reading and returns it with its size in bytes.

    Raises
    ------
    CheckpointError
        The file is missing, unreadable, or not a regular file.
    """
    try:
        # O_NONBLOCK: opening a named pipe must fail below, not wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise problem(path, "", "a readable file", error.strerror or str(error)) from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise problem(path, "", "a regular file", "a directory, pipe or device")
    return os.fdopen(fd, "rb", buffering=0), status.st_size


def read_up_to(file: BinaryIO, path: Path, count: int) -> bytes:
    """Reads `count` bytes, or fewer where the file ends; an I/O error is a CheckpointError."""
    pieces = []
    try:
        while count > 0 and (piece := file.read(count)):
            pieces.append(piece)
            count -= len(piece)
    except OSError as error:
        raise problem(path, "", "a readable file", error.strerror or str(error)) from error
    return b"".join(pieces)


def parse_json(text: bytes, path: Path, where: str, unique_keys: bool) -> Any:
    """Parses JSON that may be hostile. `unique_keys` also refuses repeated keys, NaN and Infinity.

    Raises
    ------
    CheckpointError
        Invalid UTF-8, invalid JSON, nesting too deep for Python, a number too long for Python.
    """
    try:
        if unique_keys:
            return json.loads(
                text.decode("utf-8"), object_pairs_hook=_unique_dict, parse_constant=_refuse_constant
            )
        return json.loads(text.decode("utf-8"))
    except RecursionError as error:
        raise problem(path, where, "JSON of ordinary depth", "nesting beyond Python's limit") from error
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, an integer too long for Python
        raise problem(path, where, "valid JSON in UTF-8", f"broken JSON ({error})") from error


def read_json_object(path: Path, unique_keys: bool) -> dict[str, Any]:
    """Reads a file whose content is one JSON object.

    Raises
    ------
    CheckpointError
        The file cannot be read, is too long, or holds anything but a JSON object.
    """
    file, size = open_regular(path)
    with file:
        if size > MAX_JSON_BYTES:
            raise problem(path, "", f"at most {MAX_JSON_BYTES} bytes of JSON", f"{size} bytes")
        text = read_up_to(file, path, size)
    content = parse_json(text, path, "", unique_keys)
    if not isinstance(content, dict):
        raise problem(path, "", "a JSON object", f"a JSON {type(content).__name__}")
    return content


def _unique_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {shown(repeated)} occurs more than once")
    return result


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")
