"""The tensors that Engine.add_layer is given: checked, and every expert's matrices found."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from moerun import _core, tensors
from moerun.layer_spec import DTYPES, WEIGHT_FORMATS, ExpertBlobs, ExpertMemory, LayerSpec


def check_memory(spec: LayerSpec, memory: ExpertMemory | ExpertBlobs) -> None:
    """Raises ValueError unless the memory holds what the spec says."""
    known: tuple[str, ...]
    if isinstance(memory, ExpertBlobs):
        experts, field, name, known = len(memory.addresses), "format", memory.format, WEIGHT_FORMATS
        if memory.bias != spec.bias:
            raise ValueError(f"the spec says bias={spec.bias}, the blobs have bias={memory.bias}")
        if spec.quant not in (None, memory.format):
            raise ValueError(f"the spec says {spec.quant}, the blobs hold {memory.format}")
    else:
        experts, field, name, known = len(memory.gate), "dtype", memory.dtype, DTYPES
    if experts != spec.num_experts:
        raise ValueError(f"the spec says {spec.num_experts} experts, the tensors have {experts}")
    if name not in known:
        raise ValueError(f"{type(memory).__name__}.{field} {name!r} is unknown; known: {', '.join(known)}")


def memory_of(spec: LayerSpec, given: dict[str, Any]) -> ExpertMemory:
    """Checks the tensors of add_layer against the spec and finds every expert's matrices in them."""
    experts, hidden, inter = spec.num_experts, spec.hidden_size, spec.intermediate_size
    expected: dict[str, tuple[int, ...]] = {
        "gate_up": (experts, 2 * inter, hidden),
        "down": (experts, hidden, inter),
    }
    if spec.bias:
        expected |= {"gate_up_bias": (experts, 2 * inter), "down_bias": (experts, hidden)}
    if given.keys() != expected.keys():
        raise ValueError(
            f"a layer with bias={spec.bias} needs the tensors {', '.join(expected)}; "
            f"got {', '.join(given) or 'none'}"
        )
    arrays = {name: tensors.on_host(tensors.as_array(given[name], name)) for name in expected}
    for name, shape in expected.items():
        if tuple(arrays[name].shape) != shape:
            raise ValueError(f"{name} must be {list(shape)}, got {list(arrays[name].shape)}")
        tensors.float_type(arrays[name], name)
    formats = {name: tensors.format_name(arrays[name]) for name in ("gate_up", "down")}
    if formats["gate_up"] != formats["down"]:
        raise ValueError(
            f"gate_up and down must be of one type, got {formats['gate_up']} and {formats['down']}"
        )
    weights = {name: _matrices(arrays[name]) for name in ("gate_up", "down")}
    gate_up, down = weights["gate_up"], weights["down"]
    for array in (gate_up, down):
        _core.use_huge_pages(tensors.address(array), math.prod(array.shape) * array.itemsize)

    item = _size_of(tensors.format_name(gate_up))
    per_expert, per_row, per_column = _matrix_strides(gate_up)
    base = np.uint64(tensors.address(gate_up))
    gate = base + np.arange(experts, dtype=np.uint64) * np.uint64(per_expert * item)
    down_per_expert, down_per_row, down_per_column = _matrix_strides(down)
    biases: dict[str, np.ndarray] = {}
    if spec.bias:
        both = tensors.to_float32(arrays["gate_up_bias"])
        biases = {
            "gate_bias": np.ascontiguousarray(both[:, :inter]),
            "up_bias": np.ascontiguousarray(both[:, inter:]),
            "down_bias": np.ascontiguousarray(tensors.to_float32(arrays["down_bias"])),
        }
    return ExpertMemory(
        dtype=tensors.format_name(gate_up),
        gate=gate,
        up=gate + np.uint64(inter * per_row * item),
        down=np.uint64(tensors.address(down))
        + np.arange(experts, dtype=np.uint64) * np.uint64(down_per_expert * item),
        gate_up_strides=(per_row, per_column),
        down_strides=(down_per_row, down_per_column),
        owner=(gate_up, down),
        **biases,
    )


def _size_of(format_name: str) -> int:
    """Bytes of one weight."""
    return 4 if format_name == "fp32" else 2


def _matrices(array: Any) -> Any:
    """`array` itself if its rows or columns are contiguous, else a copy."""
    per_expert, per_row, per_column = _matrix_strides(array)
    rows, columns = array.shape[1:]
    row_major = per_column == 1 and per_row >= columns
    column_major = per_row == 1 and per_column >= rows
    if (row_major or column_major) and per_expert >= 0 and tensors.has_whole_strides(array):
        return array
    return array.contiguous() if tensors.is_torch(array) else np.ascontiguousarray(array)


def _matrix_strides(array: Any) -> tuple[int, int, int]:
    """Strides of [E, rows, columns]. Those of a single row or column say nothing; here they are as usual."""
    per_expert, per_row, per_column = tensors.strides(array)
    rows, columns = array.shape[1:]
    if columns == 1:
        per_column = 1
    if rows == 1 and per_column == 1:
        per_row = columns
    return per_expert, per_row, per_column
