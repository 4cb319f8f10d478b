"""The lossless mode replayed on the machine of replayed.py: drafts with few experts, verified in one pass.

Simulated. How drafts fare is the demo model's, round by round, in an order that jumps between its texts, so
that a short stretch fares as the whole; what a verification shares is what the made-up routing of the model
shares between neighbouring tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tqdm import tqdm

from bench.mobile.quality import little_k, mixed
from bench.mobile.replayed import (
    BASE,
    GPU_GB,
    MACHINE,
    PAPER_MODELS,
    SEED,
    SYSTEMS,
    TOKENS,
    WARMUP,
    cached_share,
)
from moerun.replay.models import MODELS
from moerun.replay.passes import Pass, lossless_passes
from moerun.replay.profile import load_profile
from moerun.replay.simulator import Replay
from moerun.replay.synthetic import STYLES, generate

BITS = 16.0  # as trained
# Of the patterns: drafts with half of the experts, and shorter ones with a quarter.
DRAFTED = ("half of the experts, from 0", "quarter of the experts, from 0.2")


def replay(patterns: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per model, GPU memory, system and pattern (BASE is without drafts)."""
    profile = replace(load_profile(MACHINE), bits=BITS)
    rows = []
    runs = len(PAPER_MODELS) * len(GPU_GB) * len(SYSTEMS) * (len(DRAFTED) + 1)
    with tqdm(total=runs, desc="replaying drafts", disable=None) as bar:
        for name in PAPER_MODELS:
            model = MODELS[name]
            trace = generate(model, STYLES[name], 0, TOKENS, SEED, warmup=WARMUP)
            passes: dict[str, list[Pass] | None] = {BASE: None}
            for pattern in DRAFTED:
                found = patterns["rounds"][pattern]
                passes[pattern] = lossless_passes(
                    trace, little_k(model.top_k, found["share"]), mixed(found["rounds"])
                )
            for gpu_gb in GPU_GB:
                share = cached_share(model, profile, gpu_gb)
                for system in SYSTEMS:
                    for pattern, these in passes.items():
                        run = Replay(trace, model, profile, system, share, WARMUP, these).run().decode
                        rows.append(
                            {
                                "model": name,
                                "gpu_gb": gpu_gb,
                                "cached": share,
                                "system": system.name,
                                "pattern": pattern,
                                "token_ms": run.step_us / 1e3,
                                "hit_rate": run.hit_rate,
                                "active": run.active / run.steps,
                            }
                        )
                        bar.update()
    return rows
