"""A whole model on CPU and GPU together: decode speed by the part of the experts that the GPU's cache holds.

Random weights at the shapes of Qwen3-30B-A3B with few layers (bench/checkpoint.py), so that the routing is
about uniform: the least that a cache can gain. Each setting loads the model anew. Its logits after the prompt
are compared with those of the CPU alone.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import moerun
from bench.checkpoint import random_qwen3_moe
from bench.gpu.section import Deadline, LeftOut, first_line
from bench.shapes import SHAPES
from bench.table import Column, Table
from moerun.kernels.contract import KernelShape
from moerun.kernels.layout import layer_of

LAYERS = 4
VOCAB = 32_768  # words; the embeddings are not what is measured
PROMPT_TOKENS = 64
CACHED = (1.0, 0.5, 0.25, 0.1, 0.0)  # of all experts


@dataclass(frozen=True)
class Setting:
    """One way to run the model."""

    name: str
    options: dict[str, Any]  # of moerun.hf.from_pretrained


@dataclass(frozen=True)
class ModelRow:
    """None where it failed; `error` says why."""

    setting: str
    load_s: float | None
    decode_tokens_per_s: float | None
    prefill_tokens_per_s: float | None
    logits_error: float | None  # relative to the CPU's, by norms
    gpu: dict[str, Any] | None = None  # the engine's counters of the GPU: hits, copies, bandwidth
    error: str = ""


def settings(expert_bytes: int, experts: int) -> list[Setting]:
    """The CPU first, since the others are compared with it; then by falling part of the experts in the cache.

    Parameters
    ----------
    expert_bytes, experts
        Of one expert on the GPU; in all layers.
    """

    def gpu(part: float, **more: Any) -> dict[str, Any]:
        return {"device": "cuda", "gpu_cache": round(part * experts) * expert_bytes, **more}

    return [
        Setting("CPU only", {"device": "cpu"}),
        Setting("all GPU", gpu(1.0, schedule="gpu")),
        *(Setting(f"{part:.0%} cached", gpu(part)) for part in CACHED),
    ]


def measure(deadline: Deadline) -> Iterator[tuple[str, ModelRow]]:
    """The section "models"."""
    check_hybrid()
    folder = random_qwen3_moe(LAYERS, VOCAB)
    shape = SHAPES["qwen3-30b"]
    kernels = KernelShape(shape.hidden_size, shape.intermediate_size, shape.top_k, "bf16", "bf16")
    chosen = settings(layer_of(kernels, 90).blob_bytes, LAYERS * shape.num_experts)
    prompt = torch.randint(VOCAB, (1, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))
    table = Table(
        f"{LAYERS} layers at Qwen3-30B-A3B's shapes, bf16, {PROMPT_TOKENS} tokens of prompt",
        [
            Column("setting", 12, left=True),
            Column("load s", 7),
            Column("decode tok/s"),
            Column("prefill tok/s"),
            Column("logits off by"),
        ],
    )
    expected: torch.Tensor | None = None
    for i, setting in enumerate(chosen):
        deadline.check(", ".join(later.name for later in chosen[i:]))
        try:
            row, logits = _run(setting, folder, prompt, expected)
        except Exception as failure:  # of the engine, transformers or torch
            row, logits = _failed(setting, failure), None
        expected = logits if expected is None else expected
        table.row(setting.name, *_cells(row))
        yield "models", row


def check_hybrid() -> None:
    """Raises LeftOut if this moerun's engine has no GPU."""
    config = getattr(moerun, "EngineConfig", None)
    if config is None or "gpu_cache" not in {field.name for field in dataclasses.fields(config)}:
        raise LeftOut("this moerun's engine does not use a GPU yet (EngineConfig has no gpu_cache)")
    try:
        import transformers
    except ImportError as error:
        raise LeftOut("it needs transformers: pip install 'moerun[hf]'") from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _run(
    setting: Setting, folder: Path, prompt: torch.Tensor, expected: torch.Tensor | None
) -> tuple[ModelRow, torch.Tensor]:
    from bench.generate import generation_times
    from moerun import hf

    begin = time.perf_counter()
    model = hf.from_pretrained(folder, dtype=torch.bfloat16, **setting.options)
    load_s = time.perf_counter() - begin
    try:
        prompt = prompt.to(model.device)
        with torch.inference_mode():
            logits = model(prompt).logits[0, -1].float().cpu()  # also warms up
        generation_times(model, prompt)  # the cache fills
        start = time.perf_counter()
        marks = generation_times(model, prompt)
        counters = model.moerun_engine.stats().get("gpu")
    finally:
        model.moerun_engine.close()
    # The first mark is the prompt's, the second that of the token that the prefill gives.
    row = ModelRow(
        setting=setting.name,
        load_s=load_s,
        decode_tokens_per_s=1 / float(np.median(np.diff(marks[1:]))),
        prefill_tokens_per_s=PROMPT_TOKENS / (marks[1] - start),
        logits_error=None if expected is None else float((logits - expected).norm() / expected.norm()),
        gpu=counters,
    )
    return row, logits


def _failed(setting: Setting, failure: Exception) -> ModelRow:
    why = f"{type(failure).__name__}: {first_line(failure)}"
    return ModelRow(setting.name, None, None, None, None, error=why)


def _cells(row: ModelRow) -> list[str]:
    if row.error:
        print(f"  {row.setting}: {row.error}", flush=True)
    return [
        "-" if row.load_s is None else f"{row.load_s:.1f}",
        "-" if row.decode_tokens_per_s is None else f"{row.decode_tokens_per_s:.1f}",
        "-" if row.prefill_tokens_per_s is None else f"{row.prefill_tokens_per_s:.0f}",
        "-" if row.logits_error is None else f"{row.logits_error:.2g}",
    ]
