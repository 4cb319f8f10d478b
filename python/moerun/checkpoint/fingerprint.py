"""A short name for the content of some tensors, which changes when they do: a key for what is made of them.

Reading all bytes would take as long as what the cache is to save. So it covers every tensor's name, dtype,
shape and place, size and time of change of the files, and samples of the content: a file that was replaced,
edited or downloaded again has another time, and one that was restored with its old time still has other
bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from moerun.checkpoint.problem import problem
from moerun.checkpoint.safetensors_header import TensorInfo

_SAMPLES = 32  # spread evenly over all bytes of the tensors
_SAMPLE_BYTES = 4096  # one page: what the disk reads at least


def fingerprint(tensors: Iterable[TensorInfo], content: Callable[[TensorInfo], np.ndarray]) -> str:
    """Returns 32 hexadecimal digits; `content` gives a tensor's bytes, uint8, without reading them.

    Raises
    ------
    CheckpointError
        A file is gone.
    """
    digest = hashlib.blake2b(digest_size=16)
    ordered = sorted(tensors, key=lambda tensor: tensor.name)
    for tensor in ordered:
        digest.update(
            f"{tensor.name} {tensor.dtype} {tensor.shape} {tensor.file.name} {tensor.offset}\n".encode()
        )
    for file in sorted({tensor.file for tensor in ordered}):
        digest.update(_file_state(file))
    total = sum(tensor.nbytes for tensor in ordered)
    wanted = [total * i // _SAMPLES for i in range(_SAMPLES)]
    begin = 0
    for tensor in ordered:
        while wanted and wanted[0] < begin + tensor.nbytes:
            start = wanted.pop(0) - begin
            digest.update(content(tensor)[start : start + _SAMPLE_BYTES].tobytes())
        begin += tensor.nbytes
    return digest.hexdigest()


def _file_state(file: Path) -> bytes:
    try:
        status = os.stat(file)
    except OSError as error:
        raise problem(file, "", "a readable file", error.strerror or str(error)) from error
    return f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode()
