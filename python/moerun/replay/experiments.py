"""The comparisons behind the tables, as plain rows: traces, machines, systems, sizes of cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moerun.policy import TUNED_ALPHA
from moerun.replay.cache import hit_rate, shared_hit_rate
from moerun.replay.models import MODELS
from moerun.replay.profile import Profile
from moerun.replay.simulator import Replay
from moerun.replay.synthetic import STYLES, generate
from moerun.replay.systems import HYBRIMOE, KTRANSFORMERS, OURS, System
from moerun.replay.trace import PREFILL, Trace

PAPER_MACHINE = "a6000-xeon5220r"  # the paper's
# What other machines are asked as well.
MACHINE_MODELS = ("Mixtral-8x7B", "DeepSeek-V2-Lite", "Qwen2-57B-A14B", "Qwen3-30B-A3B")
PAPER_MODELS = ("Mixtral-8x7B", "DeepSeek-V2-Lite", "Qwen2-57B-A14B")
RATIOS = (0.25, 0.5, 0.75)
PROMPTS = (32, 128, 512, 1024)
WARMUP = 40
DECODE_TOKENS = 60
SEED = 3

# The rows of the paper's Table III, and ours with one part changed at a time.
ABLATION = (
    KTRANSFORMERS,
    KTRANSFORMERS.but("+ scheduling", schedule="hybrimoe"),
    KTRANSFORMERS.but("+ prefetch", cache="lru", prefetch="impact"),
    KTRANSFORMERS.but("+ caching", cache="mrs", promote=True),
    HYBRIMOE,
)
OUR_ABLATION = (
    OURS,
    OURS.but("whole copies only", partial_copy=False),
    OURS.but("whole copies, PCIe for nothing", partial_copy=False, copy_price=0.0),
    OURS.but("no dividing", partial_copy=False, allow_fraction=False),
    OURS.but("as the engine", partial_copy=False, promote=False, keeps_copies=True),
    OURS.but("no promotion", promote=False),
    OURS.but("no prefetch", prefetch="none"),
    OURS.but("prefetch unguarded", prefetch="impact"),
    OURS.but("MRS alpha 0.5", alpha=0.5),
    OURS.but("cache: recent", cache="recent"),
    OURS.but("cache: lru", cache="lru"),
    OURS.but("prefetch: history", predictor="history"),
    # What knowing the future is worth, one part of it at a time.
    OURS.but("knows: next layers", prefetch="perfect"),
    OURS.but("knows: cache, no prefetch", cache="belady", prefetch="none"),
    OURS.but("knows: cache", cache="belady"),
    OURS.but("knows: both", cache="belady", prefetch="perfect"),
)


def compare(
    trace: Trace,
    shape: str | None,
    profile: Profile,
    systems: Sequence[System],
    ratios: Sequence[float],
    measure_from: int = 0,
) -> list[dict[str, Any]]:
    """One row per size of cache and system: what Counters.report() says of prefill and decode.

    Raises
    ------
    ValueError
        ``shape`` (or the model that the trace names) is unknown, or does not fit the trace.
    """
    name = shape or trace.model
    if name not in MODELS:
        raise ValueError(f"model shape {name!r} is unknown; give --shape, one of {', '.join(MODELS)}")
    rows = []
    for ratio in ratios:
        for system in systems:
            replay = Replay(trace, MODELS[name], profile, system, ratio, measure_from).run()
            rows.append(
                {
                    "model": name,
                    "machine": profile.name,
                    "system": system.name,
                    "cache_ratio": ratio,
                    "prefill": replay.prefill.report(),
                    "decode": replay.decode.report(),
                }
            )
    return rows


def decode_rows(
    profile: Profile,
    systems: Sequence[System],
    models: Sequence[str] = PAPER_MODELS,
    ratios: Sequence[float] = RATIOS,
) -> list[dict[str, Any]]:
    """Decode, one token a step, after a warm-up."""
    rows = []
    for name in models:
        trace = generate(MODELS[name], STYLES[name], 0, DECODE_TOKENS, SEED, warmup=WARMUP)
        rows += compare(trace, name, profile, systems, ratios, measure_from=WARMUP)
    return rows


def prefill_rows(
    profile: Profile,
    systems: Sequence[System],
    models: Sequence[str] = PAPER_MODELS,
    ratios: Sequence[float] = RATIOS,
    prompts: Sequence[int] = PROMPTS,
) -> list[dict[str, Any]]:
    """Time to the first token of one prompt, on a cache that decode steps have warmed up."""
    rows = []
    for name in models:
        for prompt in prompts:
            trace = generate(MODELS[name], STYLES[name], prompt, 0, SEED, warmup=WARMUP // 2)
            found = compare(trace, name, profile, systems, ratios, measure_from=WARMUP // 2)
            rows += [row | {"prompt": prompt} for row in found]
    return rows


def predictor_rows(trace: Trace) -> list[dict[str, Any]]:
    """Per predictor and distance: how many of the top-k predicted experts a decode step then uses."""
    decode = np.flatnonzero(trace.phase != PREFILL)
    rows = []
    for name, source in (("gates", trace.predicted), ("corrected", trace.corrected), ("history", None)):
        if source is None and name != "history":
            continue
        hits: list[float | None] = []
        for distance in (1, 2, 3):
            found = total = 0
            for layer in range(trace.num_layers - distance):
                usage = np.zeros(trace.num_experts)
                for token in decode:
                    used = set(trace.ids[token, layer + distance].tolist())
                    scores = usage if source is None else source[token, layer, distance - 1]
                    likely = np.argsort(-scores.astype(float), kind="stable")[: trace.top_k].tolist()
                    found += sum(e in used for e in likely)
                    total += trace.top_k
                    usage *= 0.9
                    usage[list(used)] += 0.1
            hits.append(found / total if total else None)
        rows.append({"predictor": name, "hit_rate": hits})
    return rows


def recorded_hit_rates(trace: Trace, ratio: float) -> dict[str, float]:
    """Hit rates of the cache policies in the decode steps of a trace, every miss fetched."""
    steps = [tokens for tokens in trace.steps() if trace.phase[tokens[0]] != PREFILL]
    loads = [[trace.loads(tokens, layer) for layer in range(trace.num_layers)] for tokens in steps]
    scores = [
        [trace.scores[tokens, layer].astype(np.float32) for layer in range(trace.num_layers)]
        for tokens in steps
    ]
    slots = round(ratio * trace.num_experts)
    rates = {
        name: hit_rate(loads, scores, policy, slots, trace.top_k, 0, alpha)
        for name, policy, alpha in (
            ("lru", "lru", TUNED_ALPHA),
            ("mrs_0.5", "mrs", 0.5),
            ("mrs_0.1", "mrs", TUNED_ALPHA),
            ("recent", "recent", TUNED_ALPHA),
            ("belady", "belady", TUNED_ALPHA),
        )
    }
    return rates | {"mrs_shared": shared_hit_rate(loads, scores, "mrs", slots, trace.top_k)}
