"""The root mean square norm of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moerun import tensors

if TYPE_CHECKING:
    from moerun.engine import Engine


class RmsNorm:
    """``y = x / sqrt(mean(x**2) + epsilon) * weight`` (arXiv 1910.07467), in fp32, rounded once.

    Parameters
    ----------
    engine
        On whose threads it runs.
    weight
        ``[width]`` of any float type; copied.
    epsilon
        Added to the mean.
    """

    def __init__(self, engine: Engine, weight: Any, epsilon: float) -> None:
        weight = tensors.on_host(tensors.as_array(weight, "weight"))
        if weight.ndim != 1 or weight.shape[0] == 0:
            raise ValueError(f"weight must be [width], got {list(weight.shape)}")
        self.engine = engine
        self.weight = tensors.to_float32(weight)
        self.epsilon = epsilon

    def forward(self, x: Any) -> Any:
        """x ``[..., width]`` in host memory -> the same shape and type.

        Raises ValueError or TypeError if `x` does not fit, RuntimeError if the engine is closed.
        """
        x = tensors.as_array(x, "x")
        width = self.weight.shape[0]
        if x.ndim == 0 or x.shape[-1] != width:
            raise ValueError(f"x must be [..., {width}], got {list(x.shape)}")
        x_type = tensors.float_type(x, "x")
        rows = tensors.with_contiguous_rows(tensors.on_host(x).reshape(-1, width))
        out = tensors.empty_like(rows, (rows.shape[0], width))
        self.engine._core.rms_norm(
            weight=self.weight.ctypes.data,
            width=width,
            epsilon=self.epsilon,
            rows=rows.shape[0],
            x=(tensors.address(rows), x_type, tensors.strides(rows)[0]),
            out=(tensors.address(out), x_type, width),
        )
        return out.reshape(x.shape)
