"""What ``moerun generate --stats`` says of a GPU: its cache of experts, copies, who was busy how long."""

from __future__ import annotations

from typing import Any

from moerun.cli import text


def gpu_table(gpu: dict[str, Any]) -> str:
    """The part ``gpu`` of `Engine.stats` as text for people."""
    rows = [*_cache_rows(gpu), *_batch_rows(gpu)]
    if gpu["shrunk"]:
        given_back = text.plural(gpu["shrunk"], "time")
        rows.append(["Memory", f"the cache has shrunk {given_back} to fit; a lower gpu_cache prevents that"])
    return text.table(rows, "ll")


def _cache_rows(gpu: dict[str, Any]) -> list[list[str]]:
    used = gpu["hits"] + gpu["misses"]
    rows = [
        ["GPU cache", f"{gpu['resident']} of {text.plural(gpu['slots'], 'slot')} filled"],
        ["  hits", _share(gpu["hits"], used)],
        ["  misses", _share(gpu["misses"], used)],
        ["  evictions", str(gpu["evictions"])],
        ["  copies", f"{gpu['copies']}, {text.size(gpu['copied_bytes'])}"],
    ]
    if gpu["prefetches"]:
        rows.append(["  prefetches", f"{gpu['prefetches']}, {text.size(gpu['prefetched_bytes'])}"])
    if any(gpu["predictions"]):
        rows.append(["  predictions", _true_ones(gpu["predictions_correct"], gpu["predictions"])])
    if gpu["warm_copies"]:
        rows.append(["  warm start", f"{gpu['warm_copies']} of these, used most by earlier runs"])
    if gpu["h2d_bytes_per_second"]:
        rows.append(["  speed", f"{gpu['h2d_bytes_per_second'] / 1e9:.1f} GB/s host to device"])
    return rows


def _batch_rows(gpu: dict[str, Any]) -> list[list[str]]:
    observed = gpu["observed_seconds"]
    rows = [["Batches", f"{gpu['gpu_steps']} of {gpu['steps']} with a share on the GPU"]]
    if observed > 0:
        planned = f"planned: {text.seconds(gpu['planned_seconds'])}"
        rows.append(["  makespans", f"{text.seconds(observed)} ({planned}); busy and idle in these:"])
    for who, key in (("GPU", "gpu"), ("CPU", "cpu"), ("copies", "copy")):
        busy, idle = gpu[f"{key}_seconds"], gpu[f"{key}_idle_seconds"]
        rows.append([f"  {who}", f"{text.seconds(busy)} busy, {text.seconds(idle)} idle"])
    return rows


def _true_ones(correct: list[int], made: list[int]) -> str:
    ahead = [
        f"{100 * right / count:.0f} % ({distance})"
        for distance, (right, count) in enumerate(zip(correct, made, strict=True), 1)
        if count
    ]
    return f"true in {', '.join(ahead)} layers ahead"


def _share(count: int, whole: int) -> str:
    return f"{count} ({100 * count / whole:.0f} %)" if whole else str(count)
