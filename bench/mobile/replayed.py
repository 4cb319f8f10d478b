"""Big-little decoding replayed on a desktop with a GPU whose memory the experts do not fit. Simulated.

RTX 4080 class, PCIe 4, DDR4, as in MoBiLE's paper. Routing is made up per model, which tokens are sure is the
demo model's pattern.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from moerun.replay.models import MODELS, ModelShape
from moerun.replay.passes import Pass, big_little_passes
from moerun.replay.profile import Profile, load_profile
from moerun.replay.simulator import Replay
from moerun.replay.synthetic import STYLES, generate
from moerun.replay.systems import HYBRIMOE, OURS, System

MACHINE = "rtx4080-ddr4"
PAPER_MODELS = ("OLMoE", "Qwen1.5-MoE-A2.7B", "DeepSeek-V2-Lite", "Qwen3-30B-A3B")
ON_DEMAND = System("on demand", "ondemand", "lru")
SYSTEMS = (ON_DEMAND, HYBRIMOE, OURS)
GPU_GB = (8, 12, 16)
MIDDLE_GB = 12  # at which all patterns are replayed
BITS = (16.0, 4.5)  # as trained; and with 4 bits and a scale
BASE, SHOWN = "all experts", "15% fall back"  # patterns that are replayed for every storage and size
WARMUP, TOKENS, SEED = 30, 40, 3
# Of the GPU's memory: context, keys and values, the head, working space (assumed).
RESERVED_GB = 2.0


def cached_share(model: ModelShape, profile: Profile, gpu_gb: float) -> float:
    """Share of the experts for which a GPU has room beside the dense weights of all layers."""
    dense_bytes = model.num_layers * (model.attention_params + model.shared_params) * profile.bits / 8
    room = (gpu_gb - RESERVED_GB) * 1e9 - dense_bytes
    slots = int(room / profile.expert_bytes(model) / model.num_layers)
    return min(max(slots, 0), model.num_experts) / model.num_experts


def fallback_share(passes: Sequence[Pass] | None) -> float:
    """Of the tokens that are measured, those that fall back."""
    measured = [p.known > 0 for p in passes or () if p.step >= WARMUP]
    return sum(measured) / max(len(measured) - sum(measured), 1)


def replay(patterns: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per model, storage, GPU memory, system and pattern (BASE is without big-little)."""
    machine = load_profile(MACHINE)
    rows = []
    for name in PAPER_MODELS:
        model = MODELS[name]
        trace = generate(model, STYLES[name], 0, TOKENS, SEED, warmup=WARMUP)
        little_k = (model.top_k + 1) // 2
        passes = {BASE: None, "always little": big_little_passes(trace, little_k, [True])}
        passes |= {
            pattern: big_little_passes(trace, little_k, [bit == "1" for bit in found["sure"]])
            for pattern, found in patterns["sure"].items()
        }
        for bits in BITS:
            profile = replace(machine, bits=bits)
            for gpu_gb in GPU_GB:
                share = cached_share(model, profile, gpu_gb)
                for system in SYSTEMS:
                    for pattern, these in passes.items():
                        if pattern not in (BASE, SHOWN) and (bits, gpu_gb) != (BITS[0], MIDDLE_GB):
                            continue
                        run = Replay(trace, model, profile, system, share, WARMUP, these).run().decode
                        rows.append(
                            {
                                "model": name,
                                "bits": bits,
                                "gpu_gb": gpu_gb,
                                "cached": share,
                                "system": system.name,
                                "pattern": pattern,
                                "fallbacks": fallback_share(these),
                                "token_ms": run.step_us / 1e3,
                                "hit_rate": run.hit_rate,
                            }
                        )
    return rows
