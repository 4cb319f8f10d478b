"""``moerun doctor --calibrate``: what experts cost on this machine, timed anew, and how well the fit fits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from moerun.cli import text

if TYPE_CHECKING:
    from moerun.engine import Engine, Layer

DEFAULT_SHAPES = ("Qwen3-30B-A3B",)
_HEAD = ["experts", "", "first us", "expert us", "token us", "part us", "GB/s", "off by"]


def calibrations(names: Sequence[str], weight_format: str | None) -> list[dict[str, Any]]:
    """Times every kind of expert that the checkpoints or shapes named have; ready for JSON.

    Parameters
    ----------
    names
        Folders or repositories of checkpoints, or shapes of `moerun.replay.models.MODELS`.
    weight_format
        One of WEIGHT_FORMATS; None: as a checkpoint stores them, bf16 for shapes.

    Raises
    ------
    ValueError, moerun.CheckpointError
        Neither a shape nor a checkpoint; a format that its experts cannot have.
    """
    import moerun

    found = []
    with moerun.Engine(calibrate="off") as engine:
        for name in names:
            for layer in _layers(engine, name, weight_format):
                found.append(_report(name, layer))
    return found


def _layers(engine: Engine, name: str, weight_format: str | None) -> Iterator[Layer]:
    """One layer of each kind."""
    from moerun import Checkpoint, LayerSpec
    from moerun.calibration.made_up import made_up_layer
    from moerun.hf.folder import checkpoint_folder
    from moerun.replay.models import MODELS

    shapes = {known.lower(): shape for known, shape in MODELS.items()}
    if name.lower() in shapes and not os.path.isdir(name):
        shape = shapes[name.lower()]
        spec = LayerSpec(
            shape.num_experts, shape.hidden, shape.intermediate, shape.top_k, quant=weight_format
        )
        yield engine.add_layer(*made_up_layer(spec))
        return
    if not os.path.isdir(name) and "/" not in name:
        raise ValueError(f"{name!r} is neither a checkpoint nor a shape; shapes: {', '.join(MODELS)}")
    checkpoint = Checkpoint(checkpoint_folder(name))
    kinds = {checkpoint.spec(number): number for number in reversed(checkpoint.moe_layers)}
    for number in kinds.values():
        yield engine.add_layer_from(checkpoint, number, weight_format)


def _report(name: str, layer: Layer) -> dict[str, Any]:
    from moerun.calibration import calibrate
    from moerun.calibration.points import subject_of

    points = calibrate(layer)
    fitted = points.fit()
    cost = fitted.cost
    report: dict[str, Any] = {
        "name": name,
        **subject_of(layer),
        "points": points.as_dict(),
        "cpu_us": {
            "first": cost.cpu_first_us,
            "expert": cost.cpu_expert_us,
            "token": cost.cpu_token_us,
            "part": cost.cpu_part_us,
        },
        "cpu_residual": fitted.cpu_residual,
    }
    if points.gpu:
        report["gpu_us"] = {
            "expert": cost.gpu_expert_us,
            "token": cost.gpu_token_us,
            "part": cost.gpu_part_us,
        }
        report["gpu_residual"] = fitted.gpu_residual
    if points.copies:
        report["copy_us"] = {"first": fitted.copy_fixed_us, "expert": cost.copy_us}
        report["copy_residual"] = fitted.copy_residual
    return report


def render(reports: Sequence[dict[str, Any]]) -> str:
    """The reports as a table. Off by: root mean square of (fit - timed) / timed over the points."""
    rows = [_HEAD]
    for report in reports:
        size = report["points"]["expert_bytes"]
        kind = f"{report['name']}: {report['hidden']} x {report['intermediate']} {report['format']}"
        for who in ("cpu", "gpu", "copy"):
            if f"{who}_us" not in report:
                continue
            us = report[f"{who}_us"]
            rows.append(
                [
                    kind,
                    "copy" if who == "copy" else who.upper(),
                    *(f"{us[key]:.1f}" if key in us else "" for key in ("first", "expert", "token", "part")),
                    f"{size / us['expert'] / 1e3:.1f}" if us["expert"] > 0 else "",
                    f"{report[f'{who}_residual']:.0%}",
                ]
            )
            kind = f"  {text.size(size)} each" if who == "cpu" else ""
    machine = reports[0]
    on = f"{machine['cpu']}, {text.plural(machine['threads'], 'thread')}, {machine['isa']}"
    gpu = machine["gpu"] or "no GPU that the engine can use"
    return f"{on}; {gpu}\n\n" + text.table(rows, "llrrrrrr")
