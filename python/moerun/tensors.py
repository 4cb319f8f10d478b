"""What callers pass as arrays (torch, numpy, anything with DLPack), turned into addresses for the core.

Nothing here imports torch unless a caller's object needs it.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from moerun import _core

_BY_NAME = {
    "float32": _core.DType.fp32,
    "float16": _core.DType.fp16,
    "bfloat16": _core.DType.bf16,
}
_DTYPE_OF_NAME = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_torch_names: dict[Any, str] = {}  # torch.dtype -> name; filled when torch is seen first


def is_torch(array: Any) -> bool:
    """Whether `array` is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def dtype_name(array: Any) -> str:
    """Name of the element type, as numpy spells it: "float32", "bfloat16", "int64", ..."""
    if is_torch(array):
        name = _torch_names.get(array.dtype)
        if name is None:
            name = _torch_names[array.dtype] = str(array.dtype).removeprefix("torch.")
        return name
    return str(array.dtype)


def format_name(array: Any) -> str:
    """Name of a weight format ("fp32", "fp16", "bf16"); raises ValueError for any other type."""
    name = dtype_name(array)
    if name not in _DTYPE_OF_NAME:
        raise ValueError(f"weights must be float32, float16 or bfloat16, got {name}")
    return _DTYPE_OF_NAME[name]


def as_array(array: Any, what: str) -> Any:
    """`array` as a torch tensor or numpy array, without a copy; objects with DLPack become torch tensors."""
    if is_torch(array):
        if array.is_meta:
            raise ValueError(
                f"{what} lies on the meta device and has no data; load or create it on a real one"
            )
        if array.layout is not sys.modules["torch"].strided:
            raise ValueError(f"{what} is a sparse tensor; pass {what}.to_dense()")
        return array
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "__dlpack__"):
        import torch

        return torch.from_dlpack(array)
    raise TypeError(
        f"{what} must be a torch tensor, a numpy array or have __dlpack__, got {type(array).__name__}"
    )


def as_output(array: Any, shape: tuple[int, ...]) -> Any:
    """What as_array gives for an array that results are written to; raises ValueError if they cannot be."""
    array = as_array(array, "out")
    if tuple(array.shape) != shape:
        raise ValueError(f"out must be {list(shape)}, got {list(array.shape)}")
    float_type(array, "out")
    if is_torch(array):
        if array.requires_grad:
            raise ValueError("out requires grad, and gradients are not tracked here; pass out.detach()")
    elif not array.flags.writeable:
        raise ValueError("out is read-only; pass a writable array")
    if any(stride == 0 and n > 1 for stride, n in zip(strides(array), shape, strict=True)):
        raise ValueError("out has more than one element at the same address (stride 0); pass out.clone()")
    return array


def overlap(a: Any, b: Any) -> bool:
    """Whether two arrays with contiguous rows in order may share memory."""

    def extent(array: Any) -> tuple[int, int]:
        last = sum((n - 1) * s for n, s in zip(array.shape, strides(array), strict=True))
        item = array.element_size() if is_torch(array) else array.itemsize
        return address(array), address(array) + (last + 1) * item

    if 0 in a.shape or 0 in b.shape:
        return False
    (a_begin, a_end), (b_begin, b_end) = extent(a), extent(b)
    return a_begin < b_end and b_begin < a_end


def address(array: Any) -> int:
    """Byte address of the first element."""
    return array.data_ptr() if is_torch(array) else array.__array_interface__["data"][0]


def strides(array: Any) -> tuple[int, ...]:
    """Elements from one index to the next, for every dimension."""
    if is_torch(array):
        return array.stride()
    return tuple(s // array.itemsize for s in array.strides)


def is_contiguous(array: Any) -> bool:
    """Whether the elements lie in order without gaps."""
    return array.is_contiguous() if is_torch(array) else array.flags.c_contiguous


def has_whole_strides(array: Any) -> bool:
    """Whether all strides are multiples of the item size; those of the fields of numpy records may not be."""
    return is_torch(array) or all(s % array.itemsize == 0 for s in array.strides)


def on_host(array: Any) -> Any:
    """`array` in host memory, copied if it lies on a device; without torch's autograd."""
    return (
        array.detach().cpu()
        if is_torch(array) and (array.device.type != "cpu" or array.requires_grad)
        else array
    )


def with_contiguous_rows(array: Any) -> Any:
    """`array` itself if its rows are contiguous and in order, else a copy."""
    s = strides(array)
    aligned = is_torch(array) or array.flags.aligned
    if (s[-1] == 1 or array.shape[-1] == 1) and all(n >= 0 for n in s) and aligned:
        return array
    return array.contiguous() if is_torch(array) else np.ascontiguousarray(array)


def copy(source: Any, target: Any) -> None:
    """Copies between arrays of one shape, of either kind and any float type, on any device."""
    if is_torch(source) and not is_torch(target):
        target[...] = source.detach().cpu().float().numpy()
    elif is_torch(target) and not is_torch(source):
        target.copy_(sys.modules["torch"].from_numpy(source))
    else:
        target[...] = source


def empty_like(array: Any, shape: tuple[int, ...]) -> Any:
    """New array of the same kind, type and device."""
    if is_torch(array):
        return array.new_empty(shape, requires_grad=False)
    return np.empty(shape, array.dtype)


def to_float32(array: Any) -> np.ndarray:
    """A contiguous float32 copy in numpy."""
    if is_torch(array):
        return array.float().contiguous().numpy().copy()
    return np.ascontiguousarray(array, dtype=np.float32).copy()


def float_type(array: Any, what: str) -> _core.DType:
    """The core's name for a float type; raises ValueError, saying what was expected."""
    core = _BY_NAME.get(dtype_name(array))
    if core is None:
        raise ValueError(f"{what} must be float32, float16 or bfloat16, got {dtype_name(array)}")
    return core
