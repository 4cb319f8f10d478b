"""Makes docs/results/hybrimoe.md, its figures as JSON and its plot: `python -m moerun.replay.report`.

Deterministic: a second run writes the same bytes. Minutes on one core. The paper: HybriMoE, arXiv 2504.05897.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from moerun.replay.experiments import (
    ABLATION,
    MACHINE_MODELS,
    OUR_ABLATION,
    PAPER_MACHINE,
    PAPER_MODELS,
    RATIOS,
    decode_rows,
    predictor_rows,
    prefill_rows,
    recorded_hit_rates,
)
from moerun.replay.fit import measured_hit_rate
from moerun.replay.models import MODELS
from moerun.replay.page import render
from moerun.replay.profile import load_profile
from moerun.replay.synthetic import STYLES, generate
from moerun.replay.systems import BELADY, HYBRIMOE, KTRANSFORMERS, OURS, PERFECT, SYSTEMS
from moerun.replay.trace import Trace

OTHER_MACHINES = ("rtx4090-ddr5", "rtx4080-ddr4", "h200")
# In prefill the bounds plan with "balanced": "exact" takes seconds a layer, for a difference of under 1 %.
PREFILL_BOUNDS = tuple(system.but(system.name, schedule="balanced") for system in (BELADY, PERFECT))


def collect(traces: list[Path]) -> dict[str, Any]:
    """Everything that the page shows, as plain numbers."""
    machine = load_profile(PAPER_MACHINE)
    qwen2 = ("Qwen2-57B-A14B",)
    before_bounds = [s for s in SYSTEMS.values() if s not in (BELADY, PERFECT)]
    hit_rates = [
        {
            "model": name,
            "lru": measured_hit_rate(MODELS[name], STYLES[name], "lru", 0.25),
            "mrs_0.5": measured_hit_rate(MODELS[name], STYLES[name], "mrs", 0.25, 0.5),
            "mrs_0.1": measured_hit_rate(MODELS[name], STYLES[name], "mrs", 0.25),
            "recent": measured_hit_rate(MODELS[name], STYLES[name], "recent", 0.25),
            "belady": measured_hit_rate(MODELS[name], STYLES[name], "belady", 0.25),
        }
        for name in PAPER_MODELS
    ]
    mixtral = MODELS["Mixtral-8x7B"], STYLES["Mixtral-8x7B"]
    recorded = [Trace.load(path) for path in traces]
    made_up = generate(MODELS["Qwen2-57B-A14B"], STYLES["Qwen2-57B-A14B"], 0, 60, 3)
    return {
        "hit_rates": hit_rates,
        "recorded_hit_rates": {
            f"{path.stem} {ratio:.0%}": recorded_hit_rates(t, ratio)
            for path, t in zip(traces, recorded, strict=True)
            for ratio in (0.25, 0.5)
        },
        "mixtral_75": {
            "lru": measured_hit_rate(*mixtral, "lru", 0.75),
            "mrs": measured_hit_rate(*mixtral, "mrs", 0.75),
        },
        "decode": decode_rows(machine, list(SYSTEMS.values())),
        "prefill": prefill_rows(machine, [*before_bounds, *PREFILL_BOUNDS]),
        "ablation_decode": decode_rows(machine, ABLATION, qwen2, (0.25,)),
        "ablation_prefill": prefill_rows(machine, ABLATION, qwen2, (0.25,)),
        "our_ablation": decode_rows(machine, OUR_ABLATION),
        "machines": {
            name: decode_rows(load_profile(name), (KTRANSFORMERS, HYBRIMOE, OURS), MACHINE_MODELS, RATIOS)
            for name in OTHER_MACHINES
        },
        "predictors": {
            **{path.stem: predictor_rows(t) for path, t in zip(traces, recorded, strict=True)},
            "made up (Qwen2-57B-A14B)": predictor_rows(made_up),
        },
    }


def rounded(data: Any) -> Any:
    """The same with every float to five digits: what is kept, and what the page is made from."""
    if isinstance(data, dict):
        return {key: rounded(value) for key, value in data.items()}
    if isinstance(data, list):
        return [rounded(value) for value in data]
    return float(f"{data:.5g}") if isinstance(data, float) else data


def measured(data: Any) -> Any:
    """The same without phases of which no step was measured."""
    if isinstance(data, list):
        return [measured(value) for value in data]
    if isinstance(data, dict):
        return {
            key: measured(value)
            for key, value in data.items()
            if not (isinstance(value, dict) and value.get("steps") == 0)
        }
    return data


def main() -> None:
    """Write the page, the JSON and the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder to write to")
    parser.add_argument(
        "--traces", type=Path, default=Path("examples/traces"), help="folder of recorded traces"
    )
    args = parser.parse_args()
    from moerun.replay.plots import bars

    args.output.mkdir(parents=True, exist_ok=True)
    data = measured(rounded(collect(sorted(args.traces.glob("*.npz")))))
    (args.output / "hybrimoe.json").write_text(json.dumps(data) + "\n")
    (args.output / "hybrimoe.md").write_text(render(data))
    bars(data["decode"], args.output / "hybrimoe-decode.png")


if __name__ == "__main__":
    main()
