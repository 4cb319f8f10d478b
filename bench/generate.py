"""A whole model: `moerun.hf` beside transformers' own experts on the same checkpoint, with the same threads.

Prefill and decode speed in interleaved rounds (rounds.py says why), then a profile: where the time goes
outside of the experts. A round's decode is its median step, so that one step that a neighbour disturbed does
not count. The model is random (checkpoint.py), so that the text means nothing and the experts are used
evenly.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.checkpoint import random_qwen3_moe
from bench.limits import LimitMeter
from bench.profile import ModuleClock
from bench.rounds import Spread, waited_s
from bench.table import Column, Table, number, percent, plural, ratio
from moerun import Engine, _core, machine
from moerun.hf.dense import QuantisedLinear

PROMPT_TOKENS = 512
NEW_TOKENS = 64
ROUNDS = 3  # after one to warm up
OURS = "moerun"
THEIRS = "transformers grouped_mm"  # its fastest experts on the CPU


@dataclass(frozen=True)
class ModelRow:
    """Speed of one implementation: medians over the rounds. The first new token belongs to the prefill."""

    implementation: str
    threads: int
    load_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    prefill_ratio: Spread  # how many times as long as ours
    decode_ratio: Spread
    decode_gb_per_s: float  # of all weights that a step needs
    decode_of_read_limit: Spread  # fraction
    waiting: (
        float  # fraction of our threads' time, over all rounds, that they waited for a core that others had
    )


@dataclass(frozen=True)
class ProfileRow:
    """One part of the model: in the prefill, and in the median step of the decode."""

    implementation: str
    part: str
    prefill_ms: float
    prefill_share: float
    decode_ms: float
    decode_share: float


class Marks:
    """A streamer that calls `look` when the prompt and every new token arrive, and keeps what it returns."""

    def __init__(self, look: Callable[[], Any]) -> None:
        self.look = look
        self.seen: list[Any] = []

    def put(self, tokens: torch.Tensor) -> None:
        self.seen.append(self.look())

    def end(self) -> None:
        """transformers calls this at the end of a generation."""


def measure_model(threads: int, layers: int = 4, vocab_size: int = 151_936) -> dict[str, list[Any]]:
    """Rows "models" and "profile"; prints their tables."""
    try:
        import transformers
    except ImportError:
        print("\nwhole model: skipped, it needs transformers (pip install 'moerun[hf]')", flush=True)
        return {}
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    models, load_s = _load(random_qwen3_moe(layers, vocab_size), threads)
    prompt = torch.randint(vocab_size, (1, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))
    title = (
        f"{layers} layers at Qwen3-30B-A3B's shapes, {vocab_size} words, bf16, {plural(threads, 'thread')}: "
        f"{PROMPT_TOKENS} tokens of prompt, {NEW_TOKENS} new ones"
    )
    rows = _compare(models, load_s, prompt, threads, title)
    profiles = _profile(models, prompt)
    models[OURS].moerun_engine.close()
    return {"models": rows, "profile": profiles}


def _load(folder: Path, threads: int) -> tuple[dict[str, Any], dict[str, float]]:
    """The models by name, and how long each took to load."""
    from transformers import AutoModelForCausalLM

    from moerun import hf

    loaders: dict[str, Callable[[], Any]] = {
        OURS: lambda: hf.from_pretrained(folder, cpu_threads=threads, dtype=torch.bfloat16),
        THEIRS: lambda: AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, experts_implementation=THEIRS.split()[1]
        ),
    }
    # Its copy of the weights, ours in the file cache, and half as much for what it needs while it loads.
    need = 2.5 * sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    free = machine.memory().available_bytes
    if free < need:
        del loaders[THEIRS]
        print(f"\n{THEIRS}: skipped, it needs {need / 2**30:.0f} GiB of memory, {free / 2**30:.0f} are free")
    models, seconds = {}, {}
    for name, load in loaders.items():
        begin = time.perf_counter()
        models[name] = load().eval()
        seconds[name] = time.perf_counter() - begin
    return models, seconds


def _compare(
    models: dict[str, Any], load_s: dict[str, float], prompt: torch.Tensor, threads: int, title: str
) -> list[ModelRow]:
    meter = LimitMeter(threads, "bf16")
    prefill: dict[str, list[float]] = {name: [] for name in models}
    decode: dict[str, list[float]] = {name: [] for name in models}
    read_limits: list[float] = []  # bytes per second
    for model in models.values():
        generation_times(model, prompt)
    waited, begin = waited_s(), time.perf_counter()
    for round_number in range(ROUNDS):
        for name in list(models) if round_number % 2 == 0 else list(models)[::-1]:
            times = generation_times(models[name], prompt)
            prefill[name].append(times[1] - times[0])
            decode[name].append(float(np.median(np.diff(times[1:]))))
        read_limits.append(meter.measure().read_gb_per_s * 1e9)
    waiting = (waited_s() - waited) / (time.perf_counter() - begin) / threads

    table = Table(
        title,
        [
            Column("implementation", 24, left=True),
            Column("load s"),
            Column("prefill tokens/s"),
            Column("decode tokens/s"),
            Column("prefill / ours", 18),
            Column("decode / ours", 18),
            Column("decode GB/s"),
            Column("of read limit", 14),
            Column("wait"),
        ],
    )
    step_bytes = decode_bytes(models[OURS])
    rows = []
    for name in models:
        step_s = Spread.of(decode[name]).median
        of_limit = [step_bytes / s / limit for s, limit in zip(decode[name], read_limits, strict=True)]
        row = ModelRow(
            implementation=name,
            threads=threads,
            load_s=load_s[name],
            prefill_tokens_per_s=PROMPT_TOKENS / Spread.of(prefill[name]).median,
            decode_tokens_per_s=1 / step_s,
            prefill_ratio=Spread.of_ratios(prefill[name], prefill[OURS]),
            decode_ratio=Spread.of_ratios(decode[name], decode[OURS]),
            decode_gb_per_s=step_bytes / step_s / 1e9,
            decode_of_read_limit=Spread.of(of_limit),
            waiting=waiting,
        )
        rows.append(row)
        table.row(
            name,
            f"{row.load_s:.1f}",
            f"{row.prefill_tokens_per_s:.0f}",
            f"{row.decode_tokens_per_s:.1f}",
            ratio(row.prefill_ratio),
            ratio(row.decode_ratio),
            f"{row.decode_gb_per_s:.1f}",
            percent(row.decode_of_read_limit),
            f"{row.waiting:.0%}",
        )
    return rows


def _profile(models: dict[str, Any], prompt: torch.Tensor) -> list[ProfileRow]:
    """Every model in turn with a clock on its modules, as often as in the comparison; medians over all."""
    clocks = {name: ModuleClock(model) for name, model in models.items()}
    seen: dict[str, list[list[dict[str, float]]]] = {name: [] for name in models}
    for _ in range(ROUNDS):
        for name, model in models.items():
            look = functools.partial(_look, clocks[name], getattr(model, "moerun_engine", None))
            with clocks[name].running():
                seen[name].append(_generate(model, prompt, look))
    return [row for name in models for row in _profile_rows(name, seen[name])]


def _look(clock: ModuleClock, engine: Engine | None) -> dict[str, float]:
    """Seconds by part so far; the engine's own clock splits what the experts' module took."""
    seconds = clock.snapshot()
    if engine is not None:
        kernels = sum(layer["seconds"] for layer in engine.stats()["layers"])
        seconds["experts: kernels"] = kernels
        seconds["experts: call"] = seconds.pop("experts", 0.0) - kernels
    return seconds


def _profile_rows(name: str, rounds: list[list[dict[str, float]]]) -> list[ProfileRow]:
    """`rounds`: of each, what was seen at the prompt and at every new token."""
    parts = list(rounds[0][-1])
    steps = {part: np.array([np.diff([s.get(part, 0.0) for s in seen]) for seen in rounds]) for part in parts}
    prefill = {part: float(np.median(steps[part][:, 0])) for part in parts}
    decode = {part: float(np.median(steps[part][:, 1:])) for part in parts}

    table = Table(
        f"where the time goes: {name} (a clock on every module; medians over steps)",
        [
            Column("part", 44, left=True),
            Column("prefill ms"),
            Column("share"),
            Column("decode ms/token"),
            Column("share"),
        ],
    )
    rows = []
    for part in sorted(parts, key=lambda part: -decode[part]):
        row = ProfileRow(
            implementation=name,
            part=part,
            prefill_ms=prefill[part] * 1e3,
            prefill_share=prefill[part] / sum(prefill.values()),
            decode_ms=decode[part] * 1e3,
            decode_share=decode[part] / sum(decode.values()),
        )
        rows.append(row)
        table.row(
            part,
            f"{row.prefill_ms:.1f}",
            f"{row.prefill_share:.1%}",
            f"{row.decode_ms:.2f}",
            f"{row.decode_share:.1%}",
        )
    table.row("all", number(1e3 * sum(prefill.values())), "", f"{1e3 * sum(decode.values()):.2f}", "")
    return rows


def generation_times(model: Any, prompt: torch.Tensor) -> list[float]:
    """Seconds on a clock when the prompt and each new token were there."""
    return _generate(model, prompt, time.perf_counter)


def _generate(model: Any, prompt: torch.Tensor, look: Callable[[], Any]) -> list[Any]:
    """Greedy generation; what `look` returned at the prompt and at each new token."""
    marks = Marks(look)
    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        streamer=marks,
        pad_token_id=0,
    )
    return marks.seen


def decode_bytes(model: Any) -> int:
    """Bytes of weights that one step of one sequence needs: all but the embedding; of the experts, top_k."""
    experts = 0
    for layer in model.moerun_engine.layers:
        spec = layer.spec
        kind = getattr(_core.WeightFormat, spec.quant or "bf16")
        experts += spec.top_k * _core.weight_bytes(kind, spec.hidden_size, spec.intermediate_size)
    embedding = model.get_input_embeddings().weight
    dense = [p for p in model.parameters() if p is not embedding and p.device.type != "meta"]
    quantised = [m.moerun_linear.value for m in model.modules() if isinstance(m, QuantisedLinear)]
    return (
        experts
        + sum(p.numel() * p.element_size() for p in dense)
        + sum(linear.weight_bytes for linear in quantised)
    )
