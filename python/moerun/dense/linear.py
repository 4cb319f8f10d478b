"""Dense linear layers on the engine's threads and kernels: what stands around the experts in a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moerun import _core, tensors

if TYPE_CHECKING:
    from moerun.engine import Engine


class Linear:
    """``y = x @ weight.T + bias``, reading the weight where it lies. Made by Engine.add_linear.

    Attributes
    ----------
    weight
        ``[outputs, inputs]`` float32, float16 or bfloat16 in host memory, kept alive.
    """

    def __init__(self, engine: Engine, weight: Any, bias: Any = None) -> None:
        weight = tensors.on_host(tensors.as_array(weight, "weight"))
        if weight.ndim != 2 or 0 in weight.shape:
            raise ValueError(f"weight must be [outputs, inputs], got {list(weight.shape)}")
        weight = tensors.with_contiguous_rows(weight)
        self.engine = engine
        self.weight = weight
        self._bias = None
        if bias is not None:
            bias = tensors.on_host(tensors.as_array(bias, "bias"))
            if tuple(bias.shape) != (weight.shape[0],):
                raise ValueError(f"bias must be [{weight.shape[0]}], got {list(bias.shape)}")
            self._bias = tensors.to_float32(bias)
        self._view = _core.LinearView(
            weight=tensors.address(weight),
            weights_type=tensors.float_type(weight, "weight"),
            outputs=weight.shape[0],
            inputs=weight.shape[1],
            strides=(tensors.strides(weight)[0], tensors.strides(weight)[1]),
            bias=0 if self._bias is None else self._bias.ctypes.data,
        )

    def forward(self, x: Any) -> Any:
        """Returns ``x @ weight.T + bias``, ``[..., outputs]`` of x's kind and type, accumulated in fp32.

        ``x`` is ``[..., inputs]`` float32, float16 or bfloat16 in host memory. Gradients are not tracked.

        Raises
        ------
        ValueError, TypeError
            A shape or type that does not fit.
        RuntimeError
            The engine is closed or came through a fork.
        """
        x = tensors.as_array(x, "x")
        outputs, inputs = self.weight.shape
        if x.ndim == 0 or x.shape[-1] != inputs:
            raise ValueError(f"x must be [..., {inputs}], got {list(x.shape)}")
        x_type = tensors.float_type(x, "x")
        rows = tensors.with_contiguous_rows(tensors.on_host(x).reshape(-1, inputs))
        out = tensors.empty_like(rows, (rows.shape[0], outputs))
        self.engine._core.linear(
            self._view,
            tokens=rows.shape[0],
            x=(tensors.address(rows), x_type, tensors.strides(rows)[0]),
            out=(tensors.address(out), x_type, outputs),
        )
        return out.reshape((*x.shape[:-1], outputs))
