"""Gives torch any one tensor of a file without a copy. Experts go to the engine by address instead."""

from __future__ import annotations

import math
import mmap
from typing import TYPE_CHECKING

from moerun.checkpoint.experts import check_alignment
from moerun.checkpoint.problem import problem, shown
from moerun.checkpoint.safetensors_header import ITEM_BITS, TensorInfo
from moerun.checkpoint.source_file import open_regular

if TYPE_CHECKING:
    import torch

_TORCH_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}


def map_as_torch(tensor: TensorInfo, file_bytes: int) -> torch.Tensor:
    """Returns a CPU tensor that reads the file's pages and keeps its own mapping of them.

    torch knows no read-only tensors, and a write into a read-only page ends the process; so the mapping is
    private and writable: a write gives this process its own copy of the page and never reaches the file.

    Raises
    ------
    CheckpointError
        torch has no such dtype, the tensor does not lie at a multiple of its element size, the file cannot be
        mapped or no longer has `file_bytes` bytes.
    """
    import torch

    dtype = getattr(torch, _TORCH_DTYPES.get(tensor.dtype, ""), None)
    if dtype is None:
        where = f"tensor {shown(tensor.name)}"
        raise problem(tensor.file, where, "a dtype that this torch has", f"dtype {tensor.dtype}")
    if tensor.nbytes == 0:
        return torch.empty(tensor.shape, dtype=dtype)
    check_alignment(tensor, ITEM_BITS[tensor.dtype] // 8)
    skip = tensor.offset % mmap.ALLOCATIONGRANULARITY
    file, size = open_regular(tensor.file)
    with file:
        if size != file_bytes:
            found = f"{size} bytes: it was changed after the checkpoint was opened"
            raise problem(tensor.file, "", f"{file_bytes} bytes", found)
        try:
            pages = mmap.mmap(
                file.fileno(), skip + tensor.nbytes, access=mmap.ACCESS_COPY, offset=tensor.offset - skip
            )
        except OSError as error:
            raise problem(tensor.file, "", "a file that can be mapped", str(error)) from error
    count = math.prod(tensor.shape)
    return torch.frombuffer(pages, dtype=dtype, count=count, offset=skip).reshape(tensor.shape)
