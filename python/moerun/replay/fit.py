"""Fits the generator to published hit rates; `python -m moerun.replay.fit` prints styles for synthetic.py.

For each model the context's share `reuse` is bisected until LRU with a quarter of the experts cached hits as
often as in HybriMoE's paper (every miss fetched, one token a step). What the other policies get then is a
prediction.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moerun.policy import TUNED_ALPHA
from moerun.replay.cache import hit_rate
from moerun.replay.models import MODELS, ModelShape
from moerun.replay.synthetic import RoutingStyle, generate

# arXiv 2504.05897: LRU's hit rate with 25 % of the experts cached
LRU_AT_25 = {"Mixtral-8x7B": 0.302, "DeepSeek-V2-Lite": 0.477, "Qwen2-57B-A14B": 0.450}
LAYERS = 8  # enough to average over; all layers have the same statistics
WARMUP, TOKENS = 60, 240


def measured_hit_rate(
    model: ModelShape,
    style: RoutingStyle,
    policy: str,
    ratio: float,
    alpha: float = TUNED_ALPHA,
    seed: int = 1,
) -> float:
    """Hit rate in decode of one cache policy on a made-up trace."""
    trace = generate(replace(model, num_layers=LAYERS), style, 0, TOKENS, seed, lookahead=0, warmup=WARMUP)
    steps = trace.steps()
    loads = [[trace.loads(tokens, layer) for layer in range(LAYERS)] for tokens in steps]
    scores = [[trace.scores[tokens, layer].astype(np.float32) for layer in range(LAYERS)] for tokens in steps]
    slots = round(ratio * model.num_experts)
    return hit_rate(loads, scores, policy, slots, model.top_k, WARMUP, alpha)


def fit_reuse(model: ModelShape, style: RoutingStyle, target: float) -> RoutingStyle:
    """The style whose share of context lets LRU reach ``target`` with a quarter of the experts cached."""
    low, high = 0.0, 1.0
    for _ in range(9):
        middle = (low + high) / 2
        reached = measured_hit_rate(model, replace(style, reuse=middle), "lru", 0.25)
        low, high = (middle, high) if reached < target else (low, middle)
    return replace(style, reuse=round((low + high) / 2, 3))


def main() -> None:
    """Print the fitted styles and what LRU and MRS get with them."""
    for name, target in LRU_AT_25.items():
        style = fit_reuse(MODELS[name], RoutingStyle(skew=0.3, reuse=0.0), target)
        found = {
            f"{policy} {alpha}": round(measured_hit_rate(MODELS[name], style, policy, 0.25, alpha), 3)
            for policy, alpha in (
                ("lru", TUNED_ALPHA),
                ("mrs", 0.5),
                ("mrs", TUNED_ALPHA),
                ("belady", TUNED_ALPHA),
            )
        }
        print(name, style, found)


if __name__ == "__main__":
    main()
