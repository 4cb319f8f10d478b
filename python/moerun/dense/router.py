"""Routers: which experts a token goes to. All of moerun.routing's, in one call to the core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moerun import _core, tensors
from moerun.dense.linear import Linear

if TYPE_CHECKING:
    from moerun.engine import Engine


class Routing(NamedTuple):
    """logits [T, E], weights float32 [T, k] and ids int64 [T, k], the best choice first."""

    logits: Any
    weights: Any
    ids: Any


class Router:
    """Logits of all experts, and each token's choice.

    A token's score of an expert is the softmax or the sigmoid of its logits. The `top_k` experts with the
    largest score plus correction are chosen, among the `top_groups` groups of experts whose best score
    (softmax), or sum of two best (sigmoid), is largest. Sources: see moerun.routing.

    Parameters
    ----------
    engine
        On whose threads it runs.
    weight, bias
        ``[E, H]`` and ``[E]`` or None.
    top_k
        Experts per token.
    scoring
        "softmax" or "sigmoid".
    renormalise
        Whether the weights of a token are divided by their sum.
    scale
        What weights are multiplied by.
    correction
        ``[E]``, added to the scores for the choice only; or None.
    groups, top_groups
        1 and 1: no groups.
    float32_logits
        False: logits have x's type, and experts are chosen by them as they are rounded; True: they are
        float32.

    Raises
    ------
    ValueError
        Sizes that do not fit.
    """

    def __init__(
        self,
        engine: Engine,
        weight: Any,
        top_k: int,
        *,
        bias: Any = None,
        scoring: str = "softmax",
        renormalise: bool = False,
        scale: float = 1.0,
        correction: Any = None,
        groups: int = 1,
        top_groups: int = 1,
        float32_logits: bool = False,
    ) -> None:
        if scoring not in ("softmax", "sigmoid"):
            raise ValueError(f"scoring must be 'softmax' or 'sigmoid', got {scoring!r}")
        self.engine = engine
        self.gate = Linear(engine, weight, bias)
        self.top_k = top_k
        self.float32_logits = float32_logits
        self._correction = None
        if correction is not None:
            self._correction = tensors.to_float32(tensors.on_host(tensors.as_array(correction, "correction")))
            if self._correction.shape != (self.gate.outputs,):
                raise ValueError(
                    f"correction must be [{self.gate.outputs}], got {list(self._correction.shape)}"
                )
        self.view = _core.RouterView(
            self.gate.view,
            top_k=top_k,
            scoring=getattr(_core.Scoring, scoring),
            renormalise=renormalise,
            scale=scale,
            correction=0 if self._correction is None else self._correction.ctypes.data,
            groups=groups,
            top_groups=top_groups,
        )

    def forward(self, x: Any) -> Routing:
        """x ``[T, H]`` in host memory -> Routing, of x's kind.

        Equal scores: the smaller id first. Raises ValueError or TypeError if `x` does not fit, RuntimeError
        if the engine is closed.
        """
        x = tensors.as_array(x, "x")
        if x.ndim != 2 or x.shape[1] != self.gate.inputs:
            raise ValueError(f"x must be [tokens, {self.gate.inputs}], got {list(x.shape)}")
        x_type = tensors.float_type(x, "x")
        rows = tensors.with_contiguous_rows(tensors.on_host(x))
        tokens = rows.shape[0]
        if tensors.is_torch(rows):
            import torch

            weights: Any = torch.empty((tokens, self.top_k), dtype=torch.float32)
            ids: Any = torch.empty((tokens, self.top_k), dtype=torch.int64)
            logits_type = torch.float32 if self.float32_logits else rows.dtype
            logits: Any = torch.empty((tokens, self.gate.outputs), dtype=logits_type)
        else:
            weights = np.empty((tokens, self.top_k), np.float32)
            ids = np.empty((tokens, self.top_k), np.int64)
            logits = np.empty((tokens, self.gate.outputs), np.float32 if self.float32_logits else rows.dtype)
        self.engine._core.route(
            self.view,
            tokens=tokens,
            x=(tensors.address(rows), x_type, tensors.strides(rows)[0]),
            logits=tensors.address(logits),
            logits_type=tensors.float_type(logits, "logits"),
            weights=tensors.address(weights),
            ids=tensors.address(ids),
        )
        return Routing(logits, weights, ids)
