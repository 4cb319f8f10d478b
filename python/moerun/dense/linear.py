"""Dense linear layers on the engine's threads and kernels: what stands around the experts in a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moerun import _core, tensors
from moerun.layer_spec import WEIGHT_FORMATS

if TYPE_CHECKING:
    from moerun.engine import Engine


class Linear:
    """``y = x @ weight.T + bias``. Made by Engine.add_linear.

    Attributes
    ----------
    weight
        ``[outputs, inputs]`` float32, float16 or bfloat16 in host memory, kept alive and read where it lies;
        None if the weight was quantised, in which case it is not needed any more.
    format
        Of the weight, one of moerun.WEIGHT_FORMATS.
    outputs, inputs
    """

    def __init__(self, engine: Engine, weight: Any, bias: Any = None, quant: str | None = None) -> None:
        if quant is not None and quant not in WEIGHT_FORMATS:
            raise ValueError(f"quant must be one of {', '.join(WEIGHT_FORMATS)}, or None; got {quant!r}")
        weight = tensors.on_host(tensors.as_array(weight, "weight"))
        if weight.ndim != 2 or 0 in weight.shape:
            raise ValueError(f"weight must be [outputs, inputs], got {list(weight.shape)}")
        weight = tensors.with_contiguous_rows(weight)
        self.engine = engine
        self.outputs, self.inputs = weight.shape
        self._bias = None
        if bias is not None:
            bias = tensors.on_host(tensors.as_array(bias, "bias"))
            if tuple(bias.shape) != (self.outputs,):
                raise ValueError(f"bias must be [{self.outputs}], got {list(bias.shape)}")
            self._bias = tensors.to_float32(bias)
        bias_at = 0 if self._bias is None else self._bias.ctypes.data
        weights_type = tensors.float_type(weight, "weight")
        self.format = tensors.format_name(weight)
        strides = (tensors.strides(weight)[0], tensors.strides(weight)[1])
        self.weight = None
        if quant is None or quant == self.format:
            self.weight = weight
            self.view = _core.LinearView(
                weight=tensors.address(weight),
                weights_type=weights_type,
                outputs=self.outputs,
                inputs=self.inputs,
                strides=strides,
                bias=bias_at,
            )
        else:
            self.format = quant
            layout = _core.MatrixLayout(getattr(_core.WeightFormat, quant), self.outputs, self.inputs)
            from moerun.quant.blobs import allocate

            self._blob = np.frombuffer(allocate(layout.bytes), np.uint8)
            config = engine.config
            _core.quantise_matrix(
                layout,
                weights_type,
                tensors.address(weight),
                strides,
                self._blob.ctypes.data,
                config.cpu_threads or 0,
                config.isa or "",
            )
            self.view = _core.LinearView(layout, self._blob.ctypes.data, bias_at)

    @property
    def has_bias(self) -> bool:
        return self._bias is not None

    @property
    def weight_bytes(self) -> int:
        """What reading the weight once reads, in bytes."""
        if self.weight is None:
            return int(self._blob.nbytes)
        return self.outputs * self.inputs * (4 if self.format == "fp32" else 2)

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
        if x.ndim == 0 or x.shape[-1] != self.inputs:
            raise ValueError(f"x must be [..., {self.inputs}], got {list(x.shape)}")
        x_type = tensors.float_type(x, "x")
        rows = tensors.with_contiguous_rows(tensors.on_host(x).reshape(-1, self.inputs))
        out = tensors.empty_like(rows, (rows.shape[0], self.outputs))
        self.engine._core.linear(
            self.view,
            tokens=rows.shape[0],
            x=(tensors.address(rows), x_type, tensors.strides(rows)[0]),
            out=(tensors.address(out), x_type, self.outputs),
        )
        return out.reshape((*x.shape[:-1], self.outputs))
