"""Routing traces made up with known properties, for models whose weights are too large to ship.

Each token has a hidden state in every layer, h[t, l], with D numbers; a layer's gate is a random matrix on it
plus a bias per expert:

    scores[t, l] = softmax(sharpness * (G[l] h[t, l] + skew * b[l]))

Temporal reuse: h mixes a context that drifts from token to token (correlation `drift` between neighbours)
with the token's own noise, `reuse` being the context's share of the variance. Inter-layer similarity: both
are correlated by `similarity` from a layer to the next, as the residual stream makes them; so the next
layers' gates on this layer's state predict what they will choose, as in a real model, and less well with
distance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moerun.replay.models import ModelShape
from moerun.replay.trace import DECODE, PREFILL, Trace

HIDDEN = 32  # D: enough that no two gates are alike, few enough to be fast


@dataclass(frozen=True)
class RoutingStyle:
    """How a model routes. ``reuse``, ``drift`` and ``similarity`` lie in 0..1, ``skew`` is in units of the
    gate's own spread."""

    skew: float
    reuse: float
    drift: float = 0.97
    similarity: float = 0.9
    sharpness: float = 2.0


# Fitted by fit.py so that LRU with a quarter of the experts cached hits as often as in HybriMoE's paper:
# 30.2, 47.7 and 45.0 %. The others have no such figure and take Qwen2's style.
STYLES = {
    "Mixtral-8x7B": RoutingStyle(skew=0.3, reuse=0.091),
    "DeepSeek-V2-Lite": RoutingStyle(skew=0.3, reuse=0.271),
    "Qwen2-57B-A14B": RoutingStyle(skew=0.3, reuse=0.265),
    "Qwen3-30B-A3B": RoutingStyle(skew=0.3, reuse=0.265),
    "OLMoE": RoutingStyle(skew=0.3, reuse=0.265),
    "Qwen1.5-MoE-A2.7B": RoutingStyle(skew=0.3, reuse=0.265),
}


def _correlated(rng: np.random.Generator, shape: tuple[int, ...], over_layers: float) -> np.ndarray:
    """White noise ``[T, L, D]`` made an AR(1) process along the layers."""
    noise = rng.standard_normal(shape)
    for layer in range(1, shape[1]):
        noise[:, layer] = over_layers * noise[:, layer - 1] + np.sqrt(1 - over_layers**2) * noise[:, layer]
    return noise


def generate(
    model: ModelShape,
    style: RoutingStyle,
    prompt: int,
    decode: int,
    seed: int,
    lookahead: int = 3,
    warmup: int = 0,
) -> Trace:
    """Make up a trace of ``warmup`` + ``prompt`` + ``decode`` tokens.

    The warm-up tokens come first, one a step, as the decode steps of an earlier request: with them caches and
    learned confidences start as they are found in a running server.

    Gates and biases depend on the model's name only (its "weights"), everything else on ``seed`` (its
    "text").
    """
    weights = np.random.default_rng(sum(model.name.encode()))
    gates = weights.standard_normal((model.num_layers, model.num_experts, HIDDEN)) / np.sqrt(HIDDEN)
    bias = style.skew * weights.standard_normal((model.num_layers, model.num_experts))

    tokens = warmup + prompt + decode
    rng = np.random.default_rng(seed)
    shape = (tokens, model.num_layers, HIDDEN)
    context = _correlated(rng, shape, style.similarity)
    for t in range(1, tokens):
        context[t] = style.drift * context[t - 1] + np.sqrt(1 - style.drift**2) * context[t]
    own = _correlated(rng, shape, style.similarity)
    hidden = np.sqrt(style.reuse) * context + np.sqrt(1 - style.reuse) * own

    def scores_of(states: np.ndarray, first_layer: int) -> np.ndarray:
        count = states.shape[1]
        layers = slice(first_layer, first_layer + count)
        logits = style.sharpness * (np.einsum("tld,led->tle", states, gates[layers]) + bias[layers])
        logits -= logits.max(-1, keepdims=True)
        weights_ = np.exp(logits)
        return weights_ / weights_.sum(-1, keepdims=True)

    scores = scores_of(hidden, 0)
    ids = np.argsort(-scores, axis=-1, kind="stable")[..., : model.top_k]
    predicted = np.zeros((tokens, model.num_layers, lookahead, model.num_experts), np.float16)
    for d in range(1, min(lookahead, model.num_layers - 1) + 1):
        predicted[:, : model.num_layers - d, d - 1] = scores_of(hidden[:, : model.num_layers - d], d)
    step = np.concatenate(
        [np.arange(warmup), np.full(prompt, warmup), warmup + (prompt > 0) + np.arange(decode)]
    )
    phase = np.full(tokens, DECODE)
    phase[warmup : warmup + prompt] = PREFILL
    return Trace(
        model.name,
        ids.astype(np.uint16),
        scores.astype(np.float16),
        step.astype(np.int32),
        phase.astype(np.uint8),
        predicted,
    )
