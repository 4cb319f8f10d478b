"""llama.cpp and ik_llama.cpp beside ours: a whole model of few layers, the same weights and threads.

Interleaved rounds: ours generates in this process (generate.py), theirs in calls of llama-bench
(llama_bench.py). Ours continues the prompt and theirs decodes from an empty context, so that each of our
steps reads 4 MB more of keys and values. Of the rounds, that half is kept in which other processes had least
of the machine.
"""

from __future__ import annotations

import functools
import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import generate
from bench.checkpoint import random_qwen3_moe
from bench.limits import LimitMeter
from bench.peers.gguf_file import decode_bytes
from bench.peers.llama_bench import LlamaBench, Speed, gguf_file
from bench.rounds import Spread
from bench.table import Column, Table, number, percent, plural, ratio

VOCAB_SIZE = 12_672  # a twelfth of Qwen3's for a twelfth of its layers: the head keeps its share of the bytes
ROUNDS = 3
NOTE = (
    "MB/token: weights that a decode step reads: experts, attention and head in one format (with 4 bits the "
    "head in 8 at ours, in 6 at theirs). others: the share of the cores' time that other processes had."
)


@dataclass(frozen=True)
class PeerModelRow:
    """Speed of one implementation: medians over the rounds. The first new token belongs to the prefill."""

    implementation: str
    commit: str  # of theirs
    weight_format: str
    threads: int
    step_bytes: int  # weights that a decode step reads
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    prefill_ratio: Spread  # how many times as long as ours
    decode_ratio: Spread
    decode_of_read_limit: Spread  # fraction
    others: float  # fraction of all cores' time that other processes had


@dataclass(frozen=True)
class _Round:
    speeds: dict[str, Speed]
    read_limit: float  # bytes per second
    others: float


def measure_models(
    peers: Sequence[LlamaBench], formats: Sequence[str], threads: int, layers: int, vocab_size: int
) -> list[PeerModelRow]:
    """Prints a table per format and returns the rows."""
    import transformers

    from moerun import hf

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    checkpoint = random_qwen3_moe(layers, vocab_size)
    rows = []
    for weight_format in formats:
        file = gguf_file(checkpoint, weight_format, peers[0].folder)
        quant = None if weight_format == "bf16" else weight_format
        model = hf.from_pretrained(
            checkpoint, experts=quant, dense=quant, cpu_threads=threads, dtype=torch.bfloat16
        )
        title = (
            f"{layers} layers at Qwen3-30B-A3B's shapes, {vocab_size} words, {weight_format}, "
            f"{plural(threads, 'thread')}: {generate.PROMPT_TOKENS} tokens of prompt, "
            f"{generate.NEW_TOKENS} new ones"
        )
        table = _table(title)
        for row in _compare(model, peers, file, weight_format, threads):
            _print(table, row)
            rows.append(row)
        model.moerun_engine.close()
        del model
    return rows


def _compare(
    model: Any, peers: Sequence[LlamaBench], file: Path, weight_format: str, threads: int
) -> list[PeerModelRow]:
    prompt = torch.randint(
        model.config.vocab_size, (1, generate.PROMPT_TOKENS), generator=torch.Generator().manual_seed(0)
    )
    turns: dict[str, Callable[[], Speed]] = {generate.OURS: functools.partial(our_speed, model, prompt)}
    turns |= {peer.name: functools.partial(peer.run, file, threads) for peer in peers}
    meter = LimitMeter(threads, weight_format)
    generate.generation_times(model, prompt)
    rounds = [_round(turns, meter, reverse=i % 2 == 1) for i in range(ROUNDS)]
    kept = sorted(rounds, key=lambda r: r.others)[: (ROUNDS + 1) // 2]

    theirs = decode_bytes(file)
    rows = []
    for name in turns:
        speeds, ours = [r.speeds[name] for r in kept], [r.speeds[generate.OURS] for r in kept]
        step_bytes = generate.decode_bytes(model) if name == generate.OURS else theirs
        of_limit = [step_bytes / s.decode_s / r.read_limit for s, r in zip(speeds, kept, strict=True)]
        row = PeerModelRow(
            implementation=name,
            commit=speeds[0].commit,
            weight_format=weight_format,
            threads=threads,
            step_bytes=step_bytes,
            prefill_tokens_per_s=1 / Spread.of([s.prefill_s for s in speeds]).median,
            decode_tokens_per_s=1 / Spread.of([s.decode_s for s in speeds]).median,
            prefill_ratio=Spread.of_ratios([s.prefill_s for s in speeds], [s.prefill_s for s in ours]),
            decode_ratio=Spread.of_ratios([s.decode_s for s in speeds], [s.decode_s for s in ours]),
            decode_of_read_limit=Spread.of(of_limit),
            others=Spread.of([r.others for r in kept]).median,
        )
        rows.append(row)
    return rows


def _round(turns: dict[str, Callable[[], Speed]], meter: LimitMeter, reverse: bool) -> _Round:
    """A turn of each, with the limit measured before and after: neighbours only ever slow it down."""
    others, begin = others_s(), time.perf_counter()
    before = meter.measure()
    speeds = {name: turns[name]() for name in (list(turns)[::-1] if reverse else turns)}
    limit = before.best(meter.measure()).read_gb_per_s * 1e9
    all_cores_s = (time.perf_counter() - begin) * (os.cpu_count() or 1)
    return _Round(speeds, limit, (others_s() - others) / all_cores_s)


def our_speed(model: Any, prompt: torch.Tensor) -> Speed:
    """One generation."""
    times = generate.generation_times(model, prompt)
    return Speed((times[1] - times[0]) / prompt.shape[1], (times[-1] - times[1]) / (len(times) - 2))


def others_s() -> float:
    """CPU time so far of all processes but this one and those that it has started and seen end."""
    user, nice, system, _idle, _iowait, irq, softirq = (
        int(ticks) for ticks in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
    )
    busy = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    own = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return busy - sum(usage.ru_utime + usage.ru_stime for usage in own)


def _table(title: str) -> Table:
    columns = [
        Column("implementation", 28, left=True),
        Column("MB/token"),
        Column("prefill tokens/s"),
        Column("decode tokens/s"),
        Column("prefill / ours", 18),
        Column("decode / ours", 18),
        Column("of read limit", 14),
        Column("others"),
    ]
    return Table(title, columns)


def _print(table: Table, row: PeerModelRow) -> None:
    table.row(
        f"{row.implementation} {row.commit}".strip(),
        f"{row.step_bytes / 1e6:.0f}",
        number(row.prefill_tokens_per_s),
        number(row.decode_tokens_per_s),
        ratio(row.prefill_ratio),
        ratio(row.decode_ratio),
        percent(row.decode_of_read_limit),
        f"{row.others:.0%}",
    )
