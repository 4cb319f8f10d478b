"""llama.cpp and ik_llama.cpp beside ours: a whole model of few layers, the same weights and threads.

Theirs runs in `llama-bench`, one call per turn: it loads the file (mapped, so from the page cache), warms up
and measures a prefill and a decode. Ours generates in this process in between (generate.py). Ours continues
the prompt, theirs decodes from an empty context: 4 MB more of keys and values in each of our steps.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import generate
from bench.checkpoint import CACHE, random_qwen3_moe
from bench.limits import LimitMeter
from bench.peers.gguf_file import decode_bytes, write_gguf
from bench.rounds import Spread, waited_s
from bench.table import Column, Table, number, percent, plural, ratio

# llama.cpp's counterparts of our formats, by the name that llama-quantize knows; bf16 is what is written.
FORMATS = {"bf16": "", "int8": "Q8_0", "int4_g32": "Q4_0"}
VOCAB_SIZE = (
    12_672  # a twelfth of Qwen3's, as 4 layers are of its 48: the head has the share that it has there
)
ROUNDS = 3
NOTE = (
    "MB/token: weights that a decode step reads. Ours quantises the experts alone so far; in their Q8_0 and "
    "Q4_0 files attention and head are quantised too."
)


@dataclass(frozen=True)
class Speed:
    """What one call of llama-bench measured."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    commit: str


@dataclass(frozen=True)
class LlamaBench:
    """One way to run a GGUF file: a folder with llama-bench in it, and options for it."""

    name: str
    folder: Path
    options: tuple[str, ...] = ()

    def run(self, file: Path, threads: int) -> Speed:
        """One turn.

        Raises
        ------
        RuntimeError
            llama-bench failed; the message is the end of what it said.
        """
        sizes = ("-p", str(generate.PROMPT_TOKENS), "-n", str(generate.NEW_TOKENS))
        command = [self.folder / "llama-bench", "-m", file, *sizes, "-t", str(threads), "-r", "1"]
        done = subprocess.run([*command, "-o", "json", *self.options], capture_output=True, text=True)
        if done.returncode:
            end = "\n".join(done.stderr.splitlines()[-8:])
            raise RuntimeError(f"{self.name}: llama-bench ended with status {done.returncode}:\n{end}")
        # ik_llama.cpp also prints lines that are not JSON.
        text = done.stdout[done.stdout.index("[\n") : done.stdout.rindex("]") + 1]
        prefill, decode = sorted(json.loads(text), key=lambda test: test["n_gen"])
        return Speed(prefill["avg_ts"], decode["avg_ts"], prefill["build_commit"])


def llama_cpp(folder: Path) -> list[LlamaBench]:
    return [LlamaBench("llama.cpp", folder)]


def ik_llama_cpp(folder: Path) -> list[LlamaBench]:
    """As the file is, and with weights repacked into interleaved rows while loading."""
    return [
        LlamaBench("ik_llama.cpp", folder),
        LlamaBench("ik_llama.cpp -rtr 1", folder, ("-rtr", "1")),
    ]


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
    waiting: float  # fraction of our threads' time, in our turns, that they waited for a core that others had


@dataclass
class _Turns:
    """Seconds per token, round by round."""

    prefill_s: list[float] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)
    commit: str = ""


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
        experts = None if weight_format == "bf16" else weight_format
        model = hf.from_pretrained(checkpoint, experts=experts, cpu_threads=threads, dtype=torch.bfloat16)
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


def gguf_file(checkpoint: Path, weight_format: str, folder: Path) -> Path:
    """The checkpoint as a GGUF file in a format, made once; llama-quantize quantises it."""
    base = CACHE / f"{checkpoint.name}.bf16.gguf"
    if not base.exists():
        write_gguf(checkpoint, base)
    kind = FORMATS[weight_format]
    if not kind:
        return base
    file = CACHE / f"{checkpoint.name}.{kind}.gguf"
    if not file.exists():
        partial = file.with_suffix(".partial")
        subprocess.run([folder / "llama-quantize", base, partial, kind], check=True, capture_output=True)
        partial.rename(file)
    return file


def _compare(
    model: Any, peers: Sequence[LlamaBench], file: Path, weight_format: str, threads: int
) -> list[PeerModelRow]:
    prompt = torch.randint(
        model.config.vocab_size, (1, generate.PROMPT_TOKENS), generator=torch.Generator().manual_seed(0)
    )
    meter = LimitMeter(threads, weight_format)
    turns = {name: _Turns() for name in (generate.OURS, *(peer.name for peer in peers))}
    limits, waiting = [], []
    generate.generation_times(model, prompt)
    for round_number in range(ROUNDS):
        order: list[LlamaBench | None] = [None, *peers]
        for peer in order if round_number % 2 == 0 else order[::-1]:
            if peer is None:
                waiting.append(_our_turn(model, prompt, threads, turns[generate.OURS]))
                limits.append(meter.measure().read_gb_per_s * 1e9)
            else:
                speed = peer.run(file, threads)
                turns[peer.name].prefill_s.append(1 / speed.prefill_tokens_per_s)
                turns[peer.name].decode_s.append(1 / speed.decode_tokens_per_s)
                turns[peer.name].commit = speed.commit
    sizes = dict.fromkeys(turns, decode_bytes(file)) | {generate.OURS: generate.decode_bytes(model)}
    ours = turns[generate.OURS]
    return [
        PeerModelRow(
            implementation=name,
            commit=turn.commit,
            weight_format=weight_format,
            threads=threads,
            step_bytes=sizes[name],
            prefill_tokens_per_s=1 / Spread.of(turn.prefill_s).median,
            decode_tokens_per_s=1 / Spread.of(turn.decode_s).median,
            prefill_ratio=Spread.of_ratios(turn.prefill_s, ours.prefill_s),
            decode_ratio=Spread.of_ratios(turn.decode_s, ours.decode_s),
            decode_of_read_limit=Spread.of(
                [sizes[name] / s / limit for s, limit in zip(turn.decode_s, limits, strict=True)]
            ),
            waiting=float(np.median(waiting)),
        )
        for name, turn in turns.items()
    ]


def _our_turn(model: Any, prompt: torch.Tensor, threads: int, turns: _Turns) -> float:
    """Generates once; the fraction of the threads' time that they waited for a core."""
    waited = waited_s()
    times = generate.generation_times(model, prompt)
    turns.prefill_s.append((times[1] - times[0]) / generate.PROMPT_TOKENS)
    turns.decode_s.append((times[-1] - times[1]) / (len(times) - 2))
    return (waited_s() - waited) / (times[-1] - times[0]) / threads


def _table(title: str) -> Table:
    columns = [
        Column("implementation", 28, left=True),
        Column("MB/token"),
        Column("prefill tokens/s"),
        Column("decode tokens/s"),
        Column("prefill / ours", 18),
        Column("decode / ours", 18),
        Column("of read limit", 14),
        Column("wait"),
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
        f"{row.waiting:.0%}",
    )
