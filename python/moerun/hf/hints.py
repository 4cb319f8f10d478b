"""What a transformers model tells the engine ahead: the next layers' routers on this layer's hidden state.

Training-free, as in HybriMoE (arXiv 2504.05897, section IV-C): a router that is up to three layers further on
sees the state that goes into this layer's experts, and names the experts that it would choose. With
"corrected", the mean difference between the two layers' states is added first (DALI's residual vector),
learned while the model runs.

On the CPU a hint is given before the layer's experts run, so that its copies use the bus meanwhile. On a GPU
the routers run in torch's stream, the ids are copied to pinned memory behind them, and the hint is given when
that has happened: after the layer's experts, whose results are waited for anyway, or with a later layer.
Nothing here waits for the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from moerun.hf.held import Held
from moerun.policy import MAX_DISTANCE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedModel

    from moerun.engine import Engine, Layer

MOST_TOKENS = 32  # of a decode step; in more, nearly every expert is active (heuristic)
_DRIFT_RATE = 0.05  # of the mean difference between layers: a memory of about 20 steps (heuristic)


class _Ahead(NamedTuple):
    """A layer that comes `distance` layers later."""

    distance: int
    router: torch.nn.Module
    layer: Layer
    hints: LayerHints


class LayerHints:
    """Of one layer of experts: the routers that follow it. Called with every batch of the layer."""

    def __init__(self, correct: bool) -> None:
        self._correct = correct
        self._ahead: list[_Ahead] = []
        self._state: torch.Tensor | None = None  # [H] mean over the tokens of the latest step
        self._drift: dict[int, torch.Tensor] = {}  # by distance: [H] from this layer's state to that one's
        self._pending: list[tuple[torch.cuda.Event, Layer, torch.Tensor, int]] = []

    def follow(self, distance: int, router: torch.nn.Module, layer: Layer, hints: LayerHints) -> None:
        """Adds a layer that comes `distance` later."""
        self._ahead.append(_Ahead(distance, router, layer, hints))

    @torch.no_grad()
    def predict(self, hidden: torch.Tensor) -> None:
        """Before the layer's experts run on `hidden` [T, H]."""
        if len(hidden) > MOST_TOKENS or len(hidden) == 0:
            return
        if self._correct:
            self._learn(hidden)
        for ahead in self._ahead:
            drift = self._drift.get(ahead.distance)
            state = hidden if drift is None else hidden + drift.to(hidden.dtype)
            self._give(ahead, _run(ahead.router, state)[2])

    def hand_over(self) -> None:
        """After the layer's experts: gives the hints that have arrived from the device."""
        while self._pending and self._pending[0][0].query():
            _, layer, ids, distance = self._pending.pop(0)
            layer.hint(ids, distance=distance)

    def _give(self, ahead: _Ahead, ids: torch.Tensor) -> None:
        if ids.device.type == "cpu":
            ahead.layer.hint(ids, distance=ahead.distance)
            return
        on_host = torch.empty(ids.shape, dtype=ids.dtype, pin_memory=True)
        on_host.copy_(ids, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._pending.append((arrived, ahead.layer, on_host, ahead.distance))
        del self._pending[: -MAX_DISTANCE * 2]  # those of steps long past help nobody

    def _learn(self, hidden: torch.Tensor) -> None:
        """Keeps this step's state, and compares those of the layers ahead in the step before with it."""
        for ahead in self._ahead:
            there = ahead.hints._state
            if self._state is None or there is None:
                continue
            found, drift = there - self._state, self._drift.get(ahead.distance)
            self._drift[ahead.distance] = found if drift is None else drift.lerp(found, _DRIFT_RATE)
        self._state = hidden.float().mean(0)


def attach_hints(model: PreTrainedModel, engine: Engine, layers: Mapping[int, Layer]) -> bool:
    """Gives every experts module of `model` its LayerHints, where they serve a purpose; whether they do.

    They do not in an engine without a GPU or prefetching, with predictor="history", and for routers that do
    not return (logits, weights, ids).
    """
    from moerun.hf.experts import experts_modules

    config = engine.config
    if engine.gpu is None or config.prefetch == "none" or config.predictor == "history":
        return False
    names = {module: name for name, module in model.named_modules()}
    modules = experts_modules(model)
    routers = {n: _router_beside(model, names[module]) for n, module in modules.items()}
    hidden = next(iter(layers.values())).spec.hidden_size
    if not all(_gives_ids(router, hidden, model.dtype) for router in routers.values()):
        return False
    hints = {number: LayerHints(config.predictor == "corrected") for number in modules}
    order = sorted(modules)
    for place, number in enumerate(order):
        for distance, later in enumerate(order[place + 1 : place + 1 + MAX_DISTANCE], 1):
            router = routers[later]
            assert router is not None
            hints[number].follow(distance, router, layers[later], hints[later])
        modules[number].moerun_hints = Held(hints[number], 0)  # type: ignore[assignment]
    return True


def _router_beside(model: PreTrainedModel, name: str) -> torch.nn.Module | None:
    """The module called gate or router beside the experts called `name`."""
    parent = model.get_submodule(name.rpartition(".")[0])
    return next((getattr(parent, last) for last in ("gate", "router") if hasattr(parent, last)), None)


def _run(router: torch.nn.Module, state: torch.Tensor) -> Any:
    """The router's class itself: hooks and what transformers puts over it to record logits see nothing."""
    return type(router).forward(router, state)


@torch.no_grad()
def _gives_ids(router: Any, hidden: int, dtype: torch.dtype) -> bool:
    """Whether router(hidden states) gives (logits, weights, ids)."""
    if router is None:
        return False
    device = next(router.parameters()).device
    try:
        given = _run(router, torch.zeros(1, hidden, dtype=dtype, device=device))
    except (TypeError, RuntimeError, ValueError, AttributeError):
        return False
    return isinstance(given, tuple) and len(given) == 3 and given[2].dtype == torch.int64
