"""Records the routing of a real model as a trace: hooks on its routers while it reads a text.

The text goes through the model once, with causal attention, so each token meets what it would meet in prefill
or in decode; which tokens count as which is a label.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from moerun.replay.trace import DECODE, PREFILL, Trace

if TYPE_CHECKING:
    import torch

LOOKAHEAD = 3  # layers, as in HybriMoE
RESOLUTION = 4096  # scores are kept to 1/4096: what matters of them, at a third of the size


def find_routers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The routers of the MoE layers, in order: modules called gate or router beside one called experts.

    Raises
    ------
    ValueError
        The model has none.
    """
    modules = dict(model.named_modules())
    routers = []
    for name, module in modules.items():
        parent, _, last = name.rpartition(".")
        if last in ("gate", "router") and f"{parent}.experts" in modules:
            routers.append(module)
    if not routers:
        raise ValueError(f"{type(model).__name__} has no MoE layers; only models with routers can be traced")
    return routers


def record(model: Any, token_ids: list[int], prompt: int, name: str) -> Trace:
    """Let a transformers MoE model read ``token_ids`` and write down how its routers decide.

    Parameters
    ----------
    model
        A causal language model of transformers whose family `moerun.routing` knows.
    prompt
        The first so many tokens are marked as one prefill step, each of the others as a decode step.
    name
        Name of the model, for tables.

    Raises
    ------
    ValueError
        No MoE layers, an unknown family, an empty text, or a prompt longer than it.
    """
    import torch

    if not 0 <= prompt <= len(token_ids) or not token_ids:
        raise ValueError(f"trace: a prompt of {prompt} tokens does not fit a text of {len(token_ids)}")
    routers = find_routers(model)
    states: list[torch.Tensor] = []  # [T, H] per layer: what the router saw
    hooks = [
        router.register_forward_pre_hook(
            lambda _module, inputs: states.append(inputs[0].detach().float().reshape(-1, inputs[0].shape[-1]))
        )
        for router in routers
    ]
    try:
        with torch.no_grad():
            model(torch.tensor([token_ids], device=model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()

    config = model.config.to_dict()
    tokens, layers = len(token_ids), len(routers)
    choices = [_choose(config, router, state) for router, state in zip(routers, states, strict=True)]
    scores = np.stack([scores for _, scores in choices], axis=1)  # [T, L, E]
    predicted = np.zeros((tokens, layers, LOOKAHEAD, scores.shape[2]), np.float32)
    corrected = np.zeros_like(predicted)
    for layer in range(layers):
        for d in range(1, min(LOOKAHEAD, layers - 1 - layer) + 1):
            target = routers[layer + d]
            here, there = states[layer], states[layer + d]
            predicted[:, layer, d - 1] = _choose(config, target, here)[1]
            corrected[:, layer, d - 1] = _choose(config, target, here + _mean_before(there - here))[1]
    return Trace(
        model=name,
        ids=np.stack([ids for ids, _ in choices], axis=1).astype(np.uint16),
        scores=_rounded(scores),
        step=np.maximum(np.arange(tokens) - max(prompt - 1, 0), 0).astype(np.int32),
        phase=np.where(np.arange(tokens) < prompt, PREFILL, DECODE).astype(np.uint8),
        predicted=_rounded(predicted),
        corrected=_rounded(corrected),
    )


def _choose(
    config: Mapping[str, Any], router: torch.nn.Module, state: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """ids ``[T, k]`` and scores ``[T, E]`` of a router on hidden states ``[T, H]``."""
    from moerun import routing

    bias = getattr(router, "bias", None)
    logits = state @ router.weight.float().T  # type: ignore[operator, union-attr]
    if bias is not None:
        logits = logits + bias.float()
    correction = getattr(router, "e_score_correction_bias", None)
    ids = routing.route(str(config["model_type"]), config, logits, correction).ids
    scores = logits.sigmoid() if correction is not None else logits.softmax(-1)
    return ids.numpy(), scores.detach().numpy()


def _mean_before(differences: torch.Tensor) -> torch.Tensor:
    """Of ``[T, H]``: the mean over the rows before each; zeros for the first."""
    import torch

    sums = torch.cumsum(differences, 0) - differences
    counts = torch.arange(len(differences), device=differences.device).clamp(min=1)
    return sums / counts[:, None]


def _rounded(scores: np.ndarray) -> np.ndarray:
    return (np.round(scores * RESOLUTION) / RESOLUTION).astype(np.float16)
