"""``moerun info``: what a checkpoint holds and whether it fits this machine's memory and GPU. Reads headers,
never weights."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from moerun import _core, machine
from moerun.cli import arguments, text
from moerun.quant import cache_size, layout_of

if TYPE_CHECKING:
    from moerun.checkpoint import Checkpoint


GPU_RESERVED_PART = 8  # what gpu_cache="auto" leaves to others; kReservedPart in src/engine/gpu_store.cc
HEADROOM = 1.1  # memory over weights: keys and values, activations, Python and torch (heuristic)


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Add ``moerun info`` to the command line."""
    parser = subparsers.add_parser(
        "info",
        parents=[common],
        help="what a checkpoint holds, and whether it fits this machine",
        description="Shows a checkpoint's family, layers, experts and sizes, whether it fits this machine's "
        "memory, and how many experts fit its GPU. Reads headers only.",
    )
    arguments.add_checkpoint(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object; sizes in bytes")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Open the checkpoint and print what it holds."""
    from moerun.checkpoint import Checkpoint
    from moerun.hf.folder import checkpoint_folder

    folder = checkpoint_folder(args.checkpoint, local_files_only=True)  # fetches no weights to describe them
    report = describe(Checkpoint(folder), machine.memory(), _core.probe_gpu())
    print(json.dumps(report, indent=2) if args.json else render(report))
    return 0


def describe(checkpoint: Checkpoint, memory: machine.Memory, gpus: dict[str, Any]) -> dict[str, Any]:
    """Everything that info reports, ready for JSON; sizes in bytes.

    ``gpus`` is what ``_core.probe_gpu`` gives; the first device counts, as for an engine.
    """
    layers = checkpoint.moe_layers
    spec = checkpoint.spec(layers[0])
    layer_bytes = spec.num_experts * checkpoint.expert_bytes
    experts_bytes = len(layers) * layer_bytes
    other_bytes = checkpoint.total_bytes - experts_bytes
    needed_bytes = int(checkpoint.total_bytes * HEADROOM)
    all_experts = len(layers) * spec.num_experts
    slot_bytes = layout_of(spec, checkpoint.expert_dtype).bytes
    gpu = next(iter(gpus["devices"]), None)
    left_for_experts = memory.available_bytes / HEADROOM - other_bytes
    return {
        "path": str(checkpoint.path),
        "family": checkpoint.family,
        "files": len(checkpoint.files),
        "layers": checkpoint.num_layers,
        "moe_layers": len(layers),
        "experts": all_experts,
        "experts_per_layer": spec.num_experts,
        "top_k": spec.top_k,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "activation": spec.activation,
        "bias": spec.bias,
        "expert_format": checkpoint.expert_dtype,
        "expert_bytes": checkpoint.expert_bytes,
        "all_experts_bytes": experts_bytes,
        "other_weights_bytes": other_bytes,
        "total_bytes": checkpoint.total_bytes,
        "quantised_cache_bytes": cache_size(),
        "expert_bytes_per_token": len(layers) * spec.top_k * checkpoint.expert_bytes,
        "memory_total_bytes": memory.total_bytes,
        "memory_available_bytes": memory.available_bytes,
        "memory_needed_bytes": needed_bytes,
        "fits": needed_bytes <= memory.available_bytes,
        "gpu": gpu and gpu["name"],
        "why_no_gpu": gpus["reason"],
        "gpu_memory_bytes": gpu and gpu["memory_bytes"],
        "experts_that_fit_on_gpu": gpu
        and min(all_experts, room_on_gpu(gpu["memory_bytes"], other_bytes) // slot_bytes),
        "moe_layers_that_fit": min(len(layers), max(0, int(left_for_experts // layer_bytes))),
    }


def room_on_gpu(memory_bytes: int, other_bytes: int) -> int:
    """What gpu_cache="auto" takes of an empty GPU when the model's other weights are there too."""
    return max(0, memory_bytes - memory_bytes // GPU_RESERVED_PART - other_bytes)


def verdict(report: dict[str, Any]) -> str:
    """Whether the checkpoint fits this machine's memory and, if not, what that means and what would help."""
    needed, available = report["memory_needed_bytes"], report["memory_available_bytes"]
    if report["fits"]:
        return f"fits: {text.size(needed)} (weights and 10 %) of {text.size(available)} available memory"
    lines = [
        f"does not fit: {text.size(needed)} (weights and 10 %) of {text.size(available)} available memory.",
        f"Experts of {report['moe_layers_that_fit']} of {report['moe_layers']} layers would stay in memory; "
        "the others would be read from disk for every token.",
    ]
    if needed <= report["memory_total_bytes"]:
        lines.append(f"It fits once other programs free {text.size(needed - available)}.")
    else:
        lines.append(f"It needs a machine with {text.size(needed - report['memory_total_bytes'])} more.")
    return "\n".join(lines)


def render(report: dict[str, Any]) -> str:
    """The report as text for people."""

    def part(count: int) -> str:
        return f"{text.size(count)} ({100 * count / report['total_bytes']:.1f} %)"

    dense = report["layers"] - report["moe_layers"]
    layers = (
        f"{report['layers']}, {report['moe_layers']} of them with experts" if dense else str(report["layers"])
    )
    shape = (
        f"hidden {report['hidden_size']}, intermediate {report['intermediate_size']}, {report['activation']}"
    )
    available, total = text.size(report["memory_available_bytes"]), text.size(report["memory_total_bytes"])
    rows = [
        ["Checkpoint", report["path"]],
        ["Family", report["family"]],
        ["Layers", layers],
        ["Experts", f"{report['experts_per_layer']} per layer, {report['top_k']} of them per token"],
        ["  shape", shape + (", biases" if report["bias"] else "")],
        ["  format", f"{report['expert_format']}, {text.size(report['expert_bytes'])} each"],
        ["Weights", f"{text.size(report['total_bytes'])} in {text.plural(report['files'], 'file')}"],
        ["  experts", part(report["all_experts_bytes"])],
        ["  other", part(report["other_weights_bytes"])],
        ["  read per token", f"{text.size(report['expert_bytes_per_token'])} of experts"],
        ["Cache", f"{text.size(report['quantised_cache_bytes'])} of quantised experts, of all checkpoints"],
        ["Memory", f"{available} of {total} available"],
    ]
    if report["gpu"] is None:
        rows.append(["GPU", f"none: {report['why_no_gpu']}"])
    else:
        room = f"room for {report['experts_that_fit_on_gpu']} of {report['experts']} experts"
        rows.append(["GPU", f"{report['gpu']}, {text.size(report['gpu_memory_bytes'])}: {room}"])
    return text.table(rows, "ll") + "\n\n" + verdict(report)
