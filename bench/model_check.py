"""Does the replay predict the engine? Runs made-up decode steps and small batches through an engine, replays
the same routing on the costs that its calibration has found, and prints measured and predicted times.

    python -m bench.model_check [--gpu] [-o FILE.json]

Without --gpu on the stand-in driver of tests/fakecuda with throttled copies: its "GPU" is a thread of this
machine that emulates kernels, so that times mean nothing but are real times, and copies take what they are
told to take. CPU kernels are the reference ones and experts are mxfp4, in which these are about as slow as
the emulator. Needs a quiet machine with at least two cores. What a layer takes beyond its makespan (the call,
activations, results) is measured in the first half of the steps; the second half is predicted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
H2D_BYTES_PER_S = 80_000_000  # a copy takes about as long as an expert on the CPU
FORMAT = "mxfp4"
EXPERTS, TOP_K, HIDDEN, INTER, LAYERS = 16, 4, 256, 768, 3
CACHE_RATIO = 0.5
STEPS = 80  # the first half warms up
BATCH = 12  # tokens of every fourth step
AGREED = 0.15  # what the project asks for
QUIET = 0.05  # heuristic: threads that wait longer for a core than this measure others' work


def use_stand_in() -> None:
    """Before moerun is imported."""
    sys.path.insert(0, str(ROOT / "tests"))
    from fake_driver import build_fake_driver

    os.environ["MOERUN_LIBCUDA"] = str(build_fake_driver())
    os.environ["MOERUN_KERNELS"] = "described"
    os.environ["FAKECUDA_H2D_BYTES_PER_S"] = str(H2D_BYTES_PER_S)


def routing(rng: np.random.Generator) -> list[np.ndarray]:
    """[tokens, L, k] per step: favourites that change slowly, as in a text."""
    liking = rng.normal(0, 1, (LAYERS, EXPERTS))
    steps = []
    for step in range(STEPS):
        liking = 0.95 * liking + 0.3 * rng.normal(0, 1, liking.shape)
        tokens = BATCH if step % 4 == 3 else 1
        noise = rng.gumbel(0, 0.5, (tokens, *liking.shape))
        steps.append(np.argsort(-(liking + noise), axis=2)[:, :, :TOP_K])
    return steps


def measure(steps: list[np.ndarray], on_stand_in: bool) -> dict[str, Any]:
    """Runs the steps; per step the seconds it took, and the observed makespans in it."""
    import torch

    import moerun
    from bench.rounds import waited_s
    from moerun.calibration import calibrate
    from moerun.quant.blobs import layout_of

    generator = torch.Generator().manual_seed(0)

    def weights(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) / shape[-1] ** 0.5).bfloat16()

    options: dict[str, Any] = {"isa": "ref", "cpu_threads": 1} if on_stand_in else {}
    spec = moerun.LayerSpec(EXPERTS, HIDDEN, INTER, TOP_K, quant=FORMAT)
    blob = layout_of(spec, FORMAT).bytes
    slots = round(CACHE_RATIO * EXPERTS) * LAYERS
    with moerun.Engine(
        device="cuda", gpu_cache=slots * blob, prefetch="none", calibrate="off", **options
    ) as engine:
        layers = [
            engine.add_layer(
                spec,
                {"gate_up": weights(EXPERTS, 2 * INTER, HIDDEN), "down": weights(EXPERTS, HIDDEN, INTER)},
            )
            for _ in range(LAYERS)
        ]
        points = calibrate(layers[0])
        counted: list[dict[str, Any]] = [engine.stats()["gpu"]]
        seconds = []
        waited = waited_s()
        for ids in steps:
            x = torch.randn(len(ids), HIDDEN, generator=generator).bfloat16()
            share = torch.full((len(ids), TOP_K), 1 / TOP_K)
            chosen = [torch.from_numpy(np.ascontiguousarray(ids[:, layer])) for layer in range(LAYERS)]
            begin = time.perf_counter()
            for layer, expert_ids in zip(layers, chosen, strict=True):
                layer.forward(x, expert_ids, share)
            seconds.append(time.perf_counter() - begin)
            counted.append(engine.stats()["gpu"])
    per_step = {
        key: np.diff([gpu[key] for gpu in counted])
        for key in ("observed_seconds", "planned_seconds", "hits", "misses", "copies")
    }
    waiting = (waited_s() - waited) / sum(seconds)
    return {"points": points, "seconds": np.array(seconds), "waiting": waiting, **per_step}


def compare(steps: list[np.ndarray], run: dict[str, Any]) -> dict[str, Any]:
    """Measured and predicted milliseconds of the second half's steps, by kind of step."""
    from moerun.replay.models import ModelShape
    from moerun.replay.own_run import ENGINE, measured_profile, trace_of
    from moerun.replay.simulator import Replay

    half = STEPS // 2
    overhead = np.median((run["seconds"] - run["observed_seconds"])[:half]) / LAYERS
    shape = ModelShape("own run", LAYERS, EXPERTS, TOP_K, HIDDEN, INTER, 0, 0)
    profile = measured_profile(run["points"], shape, overhead * 1e6)
    replay = Replay(trace_of(steps, EXPERTS), shape, profile, ENGINE, CACHE_RATIO, measure_from=half).run()
    decode = np.array([len(ids) == 1 for ids in steps]) & (np.arange(STEPS) >= half)
    batches = np.array([len(ids) > 1 for ids in steps]) & (np.arange(STEPS) >= half)
    fitted = run["points"].fit()
    rows = {}
    for name, chosen, counters in (
        ("1 token", decode, replay.decode),
        (f"{BATCH} tokens", batches, replay.prefill),
    ):
        measured = float(run["seconds"][chosen].mean() * 1e3)
        rows[name] = {
            "steps": int(chosen.sum()),
            "measured_ms": measured,
            "predicted_ms": counters.step_us / 1e3,
            "off_by": counters.step_us / 1e3 / measured - 1,
            "engine_planned_ms": float(run["planned_seconds"][chosen].mean() * 1e3),
            "engine_makespan_ms": float(run["observed_seconds"][chosen].mean() * 1e3),
            "hit_rate": float(run["hits"][chosen].sum() / (run["hits"] + run["misses"])[chosen].sum()),
            "predicted_hit_rate": counters.hit_rate,
            "copies": int(run["copies"][chosen].sum()),
            "predicted_copies": counters.demand_copies,
        }
    everything = decode | batches
    predicted = (replay.decode.time_us + replay.prefill.time_us) / 1e3
    measured = float(run["seconds"][everything].sum() * 1e3)
    return {
        "steps": rows,
        "all_off_by": predicted / measured - 1,
        "layer_us": overhead * 1e6,
        "residuals": [fitted.cpu_residual, fitted.gpu_residual, fitted.copy_residual],
        "cost": repr(fitted.cost),
        "waiting": run["waiting"],
    }


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
    steps = routing(np.random.default_rng(1))
    result = compare(steps, measure(steps, on_stand_in=not args.gpu))
    for name, row in result["steps"].items():
        print(
            f"{name:>10}: measured {row['measured_ms']:.2f} ms, predicted {row['predicted_ms']:.2f} ms, "
            f"off by {row['off_by']:+.1%}; the engine planned {row['engine_planned_ms']:.2f} ms of makespan "
            f"and took {row['engine_makespan_ms']:.2f}; hits {row['hit_rate']:.0%}, predicted "
            f"{row['predicted_hit_rate']:.0%}; copies {row['copies']}, predicted {row['predicted_copies']}"
        )
    print(f"all steps: off by {result['all_off_by']:+.1%} (asked for: {AGREED:.0%})")
    if result["waiting"] > QUIET:
        print(f"threads waited for a core for {result['waiting']:.0%} of the time: run it on a quiet machine")
    print(json.dumps({key: result[key] for key in ("layer_us", "residuals", "cost")}))
    if args.output:
        from bench.report import environment

        args.output.write_text(json.dumps({**environment(), "model_check": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
