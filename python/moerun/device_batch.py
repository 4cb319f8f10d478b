"""DeviceCall: one batch whose arrays lie on the engine's GPU, checked and turned into addresses."""

from __future__ import annotations

import math
from typing import Any

from moerun import _core, tensors
from moerun.batch import check_batch
from moerun.device_arrays import (
    DeviceArray,
    address_of,
    as_device_array,
    on_stream,
    record_stream,
    stream_handle,
)
from moerun.layer_spec import LayerSpec


class DeviceCall:
    """As batch.Call, with the handle of the ``stream`` that the work is ordered with.

    Results come out in x's type, on the device; nothing here waits for it.
    """

    __slots__ = ("_keep", "_out", "_result", "_target", "batch", "compute_dtype", "stream")

    def __init__(self, spec: LayerSpec, x: Any, ids: Any, weights: Any, out: Any, stream: Any) -> None:
        if not tensors.is_torch(x):
            x = DeviceArray(x, "x")
        self.stream = stream_handle(stream, x)
        with on_stream(self.stream, x):
            ids = as_device_array(ids, x, "topk_ids")
            weights = as_device_array(weights, x, "topk_weights")
            if tensors.is_torch(x):
                x = as_device_array(x, x, "x")
            check_batch(spec, x, ids, weights)
            shape = (x.shape[0], spec.hidden_size)
            self._out = out
            self._target = None if out is None else _as_output(out, shape, x)
            if self._target is not None and _can_write(self._target, x, ids, weights):
                result = self._target
            elif tensors.is_torch(x):
                result = tensors.empty_like(x, shape)
            else:
                raise ValueError(
                    "out is needed for an x that is no torch tensor: contiguous, on the GPU, writable, "
                    f"{tensors.dtype_name(x)} as x is, and not overlapping the other arrays"
                )
        for array in (x, ids, weights, result):
            record_stream(array, self.stream)
        self._result = result
        self.compute_dtype = tensors.format_name(x)
        self._keep = (x, ids, weights)
        x_type, width = tensors.float_type(x, "x"), spec.hidden_size
        weights_type = tensors.float_type(weights, "topk_weights")
        self.batch = _core.Batch(
            tokens=shape[0],
            top_k=ids.shape[1],
            x=(address_of(x), x_type, width),
            ids=address_of(ids),
            ids_are_64_bit=tensors.dtype_name(ids) == "int64",
            ids_stride=ids.shape[1],
            weights=(address_of(weights), weights_type, ids.shape[1]),
            out=(address_of(result), x_type, width),
        )

    def finish(self) -> Any:
        """The result where the caller wants it, in the order of the stream; call when the job is done."""
        if self._out is None:
            return self._result
        if self._target is not self._result:
            with on_stream(self.stream, self._keep[0]):
                tensors.copy(self._result, self._target)
        return self._out

    def copy_result(self, out: Any) -> None:
        """The result into another array, in the order of the stream; call when the job is done."""
        result = self.finish()
        if not tensors.is_torch(result):
            raise TypeError("only torch tensors can be copied on the GPU: pass out to forward")
        with on_stream(self.stream, self._keep[0]):
            tensors.copy(result, tensors.as_output(out, tuple(result.shape)))


def _as_output(out: Any, shape: tuple[int, ...], x: Any) -> Any:
    if tensors.is_torch(x):
        return tensors.as_output(out, shape)
    target = as_device_array(out, x, "out")
    if target.shape != shape:
        raise ValueError(f"out must be {list(shape)}, got {list(target.shape)}")
    return target


def _can_write(out: Any, x: Any, ids: Any, weights: Any) -> bool:
    """Whether the core can write into the caller's array: it is like x, and no input is lost by writing."""
    if tensors.is_torch(out):
        if out.device != x.device or not out.is_contiguous():
            return False
    elif not isinstance(out, DeviceArray) or out.read_only:
        return False
    if tensors.dtype_name(out) != tensors.dtype_name(x):
        return False
    return not any(_overlap(out, array) for array in (x, ids, weights))


def _overlap(a: Any, b: Any) -> bool:
    (a_begin, a_end), (b_begin, b_end) = _extent(a), _extent(b)
    return a_begin < b_end and b_begin < a_end


def _extent(array: Any) -> tuple[int, int]:
    item = array.element_size() if tensors.is_torch(array) else array.itemsize
    return address_of(array), address_of(array) + math.prod(array.shape) * item
