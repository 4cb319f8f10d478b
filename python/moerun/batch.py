"""Call: one batch for a layer, checked and turned into addresses for the core. Layer makes it."""

from __future__ import annotations

from typing import Any

from moerun import _core, tensors
from moerun.layer_spec import LayerSpec


def check_batch(spec: LayerSpec, x: Any, ids: Any, weights: Any) -> None:
    """Raises ValueError, saying what was expected, if shapes or types do not fit the layer or each other."""
    if x.ndim != 2 or x.shape[1] != spec.hidden_size:
        raise ValueError(f"x must be [tokens, {spec.hidden_size}], got {list(x.shape)}")
    tokens = x.shape[0]
    if ids.ndim != 2 or ids.shape[0] != tokens:
        raise ValueError(f"topk_ids must be [{tokens}, k] for x {list(x.shape)}, got {list(ids.shape)}")
    if tuple(weights.shape) != tuple(ids.shape):
        raise ValueError(f"topk_weights must be {list(ids.shape)} like topk_ids, got {list(weights.shape)}")
    id_type = tensors.dtype_name(ids)
    if id_type not in ("int32", "int64"):
        raise ValueError(f"topk_ids must be int32 or int64, got {id_type}")
    tensors.float_type(x, "x")
    tensors.float_type(weights, "topk_weights")


class Call:
    """One checked batch: keeps its arrays alive and knows what to return.

    ``compute_dtype`` ("fp32", "fp16", "bf16") is the type in which a GPU takes x and gives the sums: that of
    x and of the result, or fp32, which holds both, if they differ.
    """

    __slots__ = ("_keep", "_out", "_result", "_target", "batch", "compute_dtype")

    def __init__(self, spec: LayerSpec, x: Any, ids: Any, weights: Any, out: Any) -> None:
        given = x = tensors.as_array(x, "x")
        ids = tensors.as_array(ids, "topk_ids")
        weights = tensors.as_array(weights, "topk_weights")
        check_batch(spec, x, ids, weights)
        x_type = tensors.float_type(x, "x")
        weights_type = tensors.float_type(weights, "topk_weights")
        tokens = x.shape[0]

        x, ids, weights = (tensors.with_contiguous_rows(tensors.on_host(a)) for a in (x, ids, weights))
        shape = (tokens, spec.hidden_size)
        self._out = out
        self._target = None if out is None else tensors.as_output(out, shape)
        if self._target is not None and self._can_write(x, ids, weights):
            result = self._target
        else:
            result = tensors.empty_like(x if out is None else tensors.on_host(self._target), shape)
        self._result = result
        result_type = tensors.float_type(result, "out")
        self.compute_dtype = tensors.format_name(x) if result_type == x_type else "fp32"
        self._keep = (given, x, ids, weights)
        self.batch = _core.Batch(
            tokens=tokens,
            top_k=ids.shape[1],
            x=(tensors.address(x), x_type, _row_stride(x)),
            ids=tensors.address(ids),
            ids_are_64_bit=tensors.dtype_name(ids) == "int64",
            ids_stride=_row_stride(ids),
            weights=(tensors.address(weights), weights_type, _row_stride(weights)),
            out=(tensors.address(result), result_type, _row_stride(result)),
        )

    def _can_write(self, x: Any, ids: Any, weights: Any) -> bool:
        """Whether the core can write into the caller's array; else finish() copies into it."""
        out: Any = self._target
        if tensors.is_torch(out) and out.device.type != "cpu":
            return False
        if tensors.with_contiguous_rows(out) is not out or _row_stride(out) < out.shape[1]:
            return False
        # An output row may take the place of its own input row, but of nothing else that is still to be read.
        in_place = (
            tensors.address(out) == tensors.address(x)
            and _row_stride(out) == _row_stride(x)
            and tensors.dtype_name(out) == tensors.dtype_name(x)
        )
        return (in_place or not tensors.overlap(out, x)) and not any(
            tensors.overlap(out, a) for a in (ids, weights)
        )

    def finish(self) -> Any:
        """The result where the caller wants it; call when the core is done."""
        if self._target is not None:
            if self._target is not self._result:
                tensors.copy(self._result, self._target)
            return self._out
        given = self._keep[0]
        if tensors.is_torch(given) and given.device.type != "cpu":
            return self._result.to(given.device)
        return self._result

    def copy_result(self, out: Any) -> None:
        """The result into another array; call when the core is done."""
        result = self.finish()
        tensors.copy(result, tensors.as_output(out, tuple(result.shape)))


def _row_stride(array: Any) -> int:
    return tensors.strides(array)[0]
