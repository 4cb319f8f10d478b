"""Does the replay predict the engine? Runs made-up decode steps and small batches through engines of three
shapes, replays the same routing on the costs that each engine has learned, and prints measured and predicted
times, whole and by part.

    python -m bench.model_check [--gpu] [-o FILE.json]

Without --gpu on the stand-in driver of tests/fakecuda with throttled copies: its "GPU" is a thread of this
machine that emulates kernels, so that times mean nothing but are real times, and copies take what they are
told to take. CPU kernels are the reference ones and experts are mxfp4, in which these are about as slow as
the emulator. Needs a quiet machine with at least two cores.

The first half of the steps warms up. What comes from it: the engine's cost model as it stands then
(calibrated, and refreshed by every batch: the CPU is slower beside a GPU that shares its cores than alone),
and what a layer takes beyond its makespan (the call, waking threads, activations, results), per kind of step.
The second half is predicted. Both are compared by the median step, which a preempted one does not move, and
by the sum of all steps, which it does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
H2D_BYTES_PER_S = 80_000_000  # a copy takes about as long as an expert on the CPU
FORMAT = "mxfp4"
STEPS = 80  # the first half warms up
BATCH = 12  # tokens of every fourth step
AGREED = 0.15  # what the project asks for
QUIET = 0.05  # heuristic: threads that wait longer for a core than this measure others' work


@dataclass(frozen=True)
class Case:
    """A shape of layer, and the share of its experts that the cache holds."""

    name: str
    experts: int
    top_k: int
    hidden: int
    inter: int
    cache_ratio: float
    layers: int = 3


CASES = (
    Case("fine", 16, 4, 256, 768, 0.5),
    Case("coarse", 8, 2, 256, 1536, 0.25),
    Case("many", 32, 6, 256, 384, 0.75),
)


def use_stand_in() -> None:
    """Before moerun is imported."""
    sys.path.insert(0, str(ROOT / "tests"))
    from fake_driver import build_fake_driver

    os.environ["MOERUN_LIBCUDA"] = str(build_fake_driver())
    os.environ["MOERUN_KERNELS"] = "described"
    os.environ["FAKECUDA_H2D_BYTES_PER_S"] = str(H2D_BYTES_PER_S)


def routing(rng: np.random.Generator, case: Case) -> list[np.ndarray]:
    """[tokens, L, k] per step: favourites that change slowly, as in a text."""
    liking = rng.normal(0, 1, (case.layers, case.experts))
    steps = []
    for step in range(STEPS):
        liking = 0.95 * liking + 0.3 * rng.normal(0, 1, liking.shape)
        tokens = BATCH if step % 4 == 3 else 1
        noise = rng.gumbel(0, 0.5, (tokens, *liking.shape))
        steps.append(np.argsort(-(liking + noise), axis=2)[:, :, : case.top_k])
    return steps


def measure(case: Case, steps: list[np.ndarray], on_stand_in: bool) -> dict[str, Any]:
    """Runs the steps; per step the seconds it took, and what the engine's statistics say of it."""
    import torch

    import moerun
    from bench.rounds import waited_s
    from moerun.calibration import calibrate
    from moerun.quant.blobs import layout_of

    generator = torch.Generator().manual_seed(0)

    def weights(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) / shape[-1] ** 0.5).bfloat16()

    options: dict[str, Any] = {"isa": "ref", "cpu_threads": 1} if on_stand_in else {}
    spec = moerun.LayerSpec(case.experts, case.hidden, case.inter, case.top_k, quant=FORMAT)
    slots = round(case.cache_ratio * case.experts) * case.layers
    with moerun.Engine(
        device="cuda",
        gpu_cache=slots * layout_of(spec, FORMAT).bytes,
        prefetch="none",
        calibrate="off",
        **options,
    ) as engine:
        layers = [
            engine.add_layer(
                spec,
                {
                    "gate_up": weights(case.experts, 2 * case.inter, case.hidden),
                    "down": weights(case.experts, case.hidden, case.inter),
                },
            )
            for _ in range(case.layers)
        ]
        points = calibrate(layers[0])
        counted: list[dict[str, Any]] = [engine.stats()["gpu"]]
        seconds = []
        learned = layers[0].cost
        waited = waited_s()
        for step, ids in enumerate(steps):
            if step == len(steps) // 2:
                learned = layers[0].cost
            x = torch.randn(len(ids), case.hidden, generator=generator).bfloat16()
            share = torch.full((len(ids), case.top_k), 1 / case.top_k)
            chosen = [torch.from_numpy(np.ascontiguousarray(ids[:, layer])) for layer in range(case.layers)]
            begin = time.perf_counter()
            for layer, expert_ids in zip(layers, chosen, strict=True):
                layer.forward(x, expert_ids, share)
            seconds.append(time.perf_counter() - begin)
            counted.append(engine.stats()["gpu"])
    counters = ("observed_seconds", "cpu_seconds", "gpu_seconds", "copy_seconds", "hits", "misses", "copies")
    return {
        "points": points,
        "learned": learned,
        "seconds": np.array(seconds),
        "waiting": (waited_s() - waited) / sum(seconds),
        **{key: np.diff([gpu[key] for gpu in counted]) for key in counters},
    }


def compare(case: Case, steps: list[np.ndarray], run: dict[str, Any]) -> dict[str, Any]:
    """Measured and predicted milliseconds of the second half's steps, by kind of step and by part."""
    from moerun.replay.models import ModelShape
    from moerun.replay.own_run import engine_of, measured_profile, trace_of
    from moerun.replay.simulator import Replay

    half = STEPS // 2
    late = np.arange(STEPS) >= half
    single = np.array([len(ids) == 1 for ids in steps])
    beyond_us = (run["seconds"] - run["observed_seconds"]) * 1e6 / case.layers
    one_us, batch_us = (float(np.median(beyond_us[kind & ~late])) for kind in (single, ~single))
    token_us = max(batch_us - one_us, 0.0) / (BATCH - 1)
    shape = ModelShape(case.name, case.layers, case.experts, case.top_k, case.hidden, case.inter, 0, 0)
    profile = measured_profile(run["points"], shape, one_us - token_us, token_us, run["learned"])
    trace = trace_of(steps, case.experts)
    replay = Replay(trace, shape, profile, engine_of(shape), case.cache_ratio, measure_from=half).run()
    predicted = np.array(replay.pass_us) / 1e6
    rows = {}
    for name, kind, counters in (
        ("1 token", single & late, replay.decode),
        (f"{BATCH} tokens", ~single & late, replay.prefill),
    ):
        tokens = 1 if name == "1 token" else BATCH
        count = int(kind.sum())
        measured_ms = float(np.median(run["seconds"][kind]) * 1e3)
        predicted_ms = float(np.median(predicted[kind]) * 1e3)
        launches_us = counters.gpu_busy_us - count * case.layers * profile.attention_us(shape, tokens)
        rows[name] = {
            "steps": count,
            "measured_ms": measured_ms,
            "predicted_ms": predicted_ms,
            "off_by": predicted_ms / measured_ms - 1,
            "parts_ms": {  # of a mean step: measured, predicted
                "cpu": (run["cpu_seconds"][kind].mean() * 1e3, counters.cpu_busy_us / count / 1e3),
                "gpu": (run["gpu_seconds"][kind].mean() * 1e3, launches_us / count / 1e3),
                "copies": (run["copy_seconds"][kind].mean() * 1e3, counters.pcie_busy_us / count / 1e3),
                "makespans": (run["observed_seconds"][kind].mean() * 1e3, counters.makespan_us / count / 1e3),
            },
            "hit_rate": float(run["hits"][kind].sum() / (run["hits"] + run["misses"])[kind].sum()),
            "predicted_hit_rate": counters.hit_rate,
            "copies": int(run["copies"][kind].sum()),
            "predicted_copies": counters.demand_copies,
        }
    fitted = run["points"].fit()
    return {
        "steps": rows,
        "all_off_by": float(predicted[late].sum() / run["seconds"][late].sum() - 1),
        "layer_us": [one_us, batch_us],
        "residuals": [fitted.cpu_residual, fitted.gpu_residual, fitted.copy_residual],
        "calibrated": repr(fitted.cost),
        "learned": repr(run["learned"]),
        "waiting": run["waiting"],
    }


def show(case: Case, result: dict[str, Any]) -> None:
    """One case as text."""
    print(
        f"{case.name}: {case.experts} experts of {case.hidden} x {case.inter}, top-{case.top_k}, "
        f"{case.cache_ratio:.0%} cached; calibration off its points by "
        f"{', '.join(f'{r:.0%}' for r in result['residuals'])} (CPU, GPU, copies)"
    )
    for name, row in result["steps"].items():
        parts = "; ".join(f"{part} {was:.2f} / {said:.2f}" for part, (was, said) in row["parts_ms"].items())
        print(
            f"{name:>10}: measured {row['measured_ms']:.2f} ms, predicted {row['predicted_ms']:.2f} ms, "
            f"off by {row['off_by']:+.1%}; {parts}; hits {row['hit_rate']:.0%} / "
            f"{row['predicted_hit_rate']:.0%}; copies {row['copies']} / {row['predicted_copies']}"
        )
    print(f"{'all':>10}: the sum of all steps off by {result['all_off_by']:+.1%}")
    if result["waiting"] > QUIET:
        print(f"threads waited for a core for {result['waiting']:.0%} of the time: run it on a quiet machine")


def main() -> None:
    """Measure, predict, print and keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu", action="store_true", help="on this machine's GPU")
    parser.add_argument("-o", "--output", type=Path, help="JSON to write")
    args = parser.parse_args()
    if not args.gpu:
        use_stand_in()
    results = {}
    for case in CASES:
        steps = routing(np.random.default_rng(1), case)
        results[case.name] = compare(case, steps, measure(case, steps, on_stand_in=not args.gpu))
        show(case, results[case.name])
    worst = max(abs(row["off_by"]) for result in results.values() for row in result["steps"].values())
    print(f"median steps: off by at most {worst:.1%} (asked for: {AGREED:.0%})")
    if args.output:
        from bench.report import environment

        args.output.write_text(json.dumps({**environment(), "model_check": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
