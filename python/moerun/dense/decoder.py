"""A whole decoder layer of a few tokens, in one call to the core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moerun import _core
from moerun.dense.attention import Attention
from moerun.dense.norm import RmsNorm
from moerun.dense.router import Router

if TYPE_CHECKING:
    from moerun.engine import Layer


class DecoderLayer:
    """``y = x + attention(norm(x))``, then ``y + experts(norm(y))``: Llama's layer with experts.

    Parameters
    ----------
    attention_norm, attention, expert_norm, router, experts
        The parts, all of one engine without a GPU.

    Raises
    ------
    ValueError
        Parts that do not fit each other.
    """

    def __init__(
        self,
        attention_norm: RmsNorm,
        attention: Attention,
        expert_norm: RmsNorm,
        router: Router,
        experts: Layer,
    ) -> None:
        hidden = attention.projections[0].inputs
        widths = (
            len(attention_norm.weight),
            attention.projections[3].outputs,
            len(expert_norm.weight),
            router.gate.inputs,
            experts.spec.hidden_size,
        )
        if set(widths) != {hidden}:
            raise ValueError(f"all parts must have one hidden size, got {[hidden, *widths]}")
        if router.gate.outputs != experts.spec.num_experts:
            raise ValueError(
                f"the router has {router.gate.outputs} experts, the layer {experts.spec.num_experts}"
            )
        self.parts = (attention_norm, attention, expert_norm, router, experts)
        self._attention = attention
        self._engine = attention.engine
        self._experts = experts
        self._view = _core.DecoderView(
            attention_norm.weight.ctypes.data,
            attention_norm.epsilon,
            attention.view,
            expert_norm.weight.ctypes.data,
            expert_norm.epsilon,
            router.view,
        )

    def forward(self, x: Any, cos: Any, sin: Any, keys: Any, values: Any, past: int, mask: Any = None) -> Any:
        """As Attention.forward, of the whole layer. Activations are rounded to x's type between the parts.

        Raises ValueError if something does not fit, and RuntimeError if the engine is closed or has a GPU.
        """
        batch, out = self._attention.batch(x, cos, sin, keys, values, past, mask)
        self._engine._core.decode(self._experts._core, self._view, batch)
        return out
