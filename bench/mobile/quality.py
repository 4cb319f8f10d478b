"""Quality of big-little decoding with the demo model: agreement, perplexity and experts read, by threshold.

Two texts: Python files of this project, which the model was not trained on, and what the model itself writes
(greedily, with all experts) after beginnings of them. Both are read token by token as decoding would have
written them (moerun.big_little.reading).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import moerun
import moerun.hf
from bench.report import ROOT
from moerun.big_little.confidence import confidence_of
from moerun.big_little.generate import decide
from moerun.big_little.options import MEASURES
from moerun.big_little.reading import Reading, Text, windows_of

DEMO = ROOT / "examples" / "pycode-moe"
PROMPT, STEPS, WINDOWS = 32, 96, 24
THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
REFRESH = 8
SEEDS = 3  # of the random baseline
SHARES = (0.25, 0.5, 0.75)  # of little tokens, at which the measures of confidence are compared
FALLBACKS = (0.08, 0.15, 0.25)  # what the paper's speed implies if copies decide (docs/results/mobile.md)
PROMPTS, NEW = 20, 64  # of the lossless runs
STRIDE = 331  # prime
DRAFTED_FROM = (0.0, 0.5)  # thresholds of the lossless runs whose pattern is imposed elsewhere


def source_files() -> list[Path]:
    """Python files of the project's package."""
    return sorted((ROOT / "python" / "moerun").rglob("*.py"))


def measure(threads: int) -> dict[str, Any]:
    """Everything about quality, as plain numbers."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    content = "\n".join(file.read_text() for file in source_files())
    tokens = tokenizer(content, verbose=False).input_ids
    models = {
        dtype: moerun.hf.from_pretrained(DEMO, dtype=dtype, cpu_threads=threads) for dtype in ("fp32", "bf16")
    }
    model = models["fp32"]
    windows = windows_of(tokens, PROMPT, STEPS, WINDOWS)
    written = model.generate(
        windows[:, :PROMPT], max_new_tokens=STEPS + 1, do_sample=False, eos_token_id=None
    )
    texts = {
        "project": Text(model, windows, PROMPT),
        "own": Text(model, written, PROMPT),
    }
    runs = len(texts) * (len(THRESHOLDS) * (2 + SEEDS) + 1 + len(MEASURES) * len(SHARES))
    with tqdm(total=runs * STEPS, desc="reading texts", unit="token", disable=None) as bar:
        figures = {name: _figures(text, bar) for name, text in texts.items()}
    return {
        "texts": figures,
        "experts_per_token": sum(layer.spec.top_k for layer in model.moerun_engine.layers),
        "tokens": WINDOWS * STEPS,
        "lossless": [_lossless(model, windows, threshold) for threshold in (0.0, 0.3, 0.5, 0.7, 0.9)],
        "equality": [_equality(models[dtype], dtype, windows) for dtype in models],
        "patterns": _patterns(model, texts["own"], windows),
    }


def _figures(text: Text, bar: tqdm) -> dict[str, Any]:
    def read(options: moerun.BigLittle, accept: Any = None) -> Reading:
        return text.read(options, accept or decide(options), bar.update)

    rows = []
    for threshold in THRESHOLDS:
        plain = read(moerun.BigLittle(threshold))
        refreshed = read(moerun.BigLittle(threshold, refresh=REFRESH))
        chance = []
        for seed in range(SEEDS):
            generator = torch.Generator().manual_seed(seed)
            accept = _by_chance(plain.little_share, generator)
            chance.append(_row(read(moerun.BigLittle(threshold), accept)))
        rows.append(
            {
                "threshold": threshold,
                "confidence": _row(plain),
                "refreshed": _row(refreshed),
                "chance": {key: sum(row[key] for row in chance) / SEEDS for key in chance[0]},
            }
        )
    return {
        "rows": rows,
        "full_perplexity": float(text.losses.mean().exp()),
        "measures": _compare_measures(text, read),
    }


def _by_chance(share: float, generator: torch.Generator) -> Any:
    return lambda logits: torch.rand(len(logits), generator=generator) < share


def _row(reading: Reading) -> dict[str, float]:
    return {
        "little_share": reading.little_share,
        "agreement": 1 - reading.disagreement,
        "perplexity": reading.perplexity,
        "experts_per_token": reading.experts_per_token,
    }


def _confidences(text: Text, measure: str, on_step: Any) -> torch.Tensor:
    """Of every little pass of a text that is read with few experts only."""
    seen: list[torch.Tensor] = []

    def accept(logits: torch.Tensor) -> torch.Tensor:
        seen.append(confidence_of(measure)(logits))
        return torch.ones(len(logits), dtype=torch.bool)

    text.read(moerun.BigLittle(0.0), accept, on_step)
    return torch.stack(seen, 1).flatten()


def _compare_measures(text: Text, read: Any) -> list[dict[str, Any]]:
    """Agreement with each measure of confidence, at thresholds that accept about the same share."""
    rows = []
    for measure in MEASURES:
        values = _confidences(text, measure, lambda: None)
        for share in SHARES:
            threshold = float(values.quantile(1 - share).clamp(0, 1))
            options = moerun.BigLittle(threshold, measure=measure)
            rows.append({"measure": measure, "threshold": threshold, **_row(read(options))})
    return rows


def _lossless(model: Any, windows: torch.Tensor, threshold: float) -> dict[str, float]:
    """Lossless runs of single prompts: how drafts fare, and what is read."""
    drafted = accepted = new = experts = rounds = passes = 0
    for window in windows[:PROMPTS]:
        found = moerun.generate(
            model,
            window[None, :PROMPT],
            moerun.BigLittle(threshold, lossless=True),
            do_sample=False,
            max_new_tokens=NEW,
            eos_token_id=None,
        )
        statistics = found.statistics
        drafted += statistics.drafted_tokens
        accepted += statistics.accepted_tokens
        new += statistics.new_tokens - 1
        experts += statistics.experts_read
        passes += statistics.little_passes
        rounds += len(found.rounds)
    return {
        "threshold": threshold,
        "acceptance": accepted / drafted if drafted else 0.0,
        "tokens_per_round": new / rounds,
        "little_passes_per_token": passes / new,
        "experts_per_token": experts / new,
    }


def _equality(model: Any, dtype: str, windows: torch.Tensor) -> dict[str, Any]:
    """How many greedy texts of a lossless run are the full model's, and how close a call the others were."""
    equal, margins = 0, []
    for window in windows[:PROMPTS]:
        options = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None}
        prompt = window[None, :PROMPT]
        usual = model.generate(prompt, **options)
        found = moerun.generate(model, prompt, moerun.BigLittle(0.3, lossless=True), **options).sequences
        if torch.equal(usual, found):
            equal += 1
            continue
        first = int((usual != found)[0].nonzero()[0])
        with torch.no_grad():
            best = model(usual[:, :first]).logits[0, -1].float().topk(2).values
        margins.append(float((best[0] - best[1]) / best[0].abs()))
    return {"dtype": dtype, "prompts": PROMPTS, "tokens": NEW, "equal": equal, "margins": margins}


def _patterns(model: Any, own: Text, windows: torch.Tensor) -> dict[str, Any]:
    """Which tokens are sure, for the parts that impose the pattern elsewhere."""
    values = _confidences(own, MEASURES[0], lambda: None)
    thresholds = {"0.7": 0.7}
    thresholds |= {f"{share:.0%} fall back": float(values.quantile(share)) for share in FALLBACKS}
    sure = {}
    for name, threshold in thresholds.items():
        options = moerun.BigLittle(threshold)
        reading = own.read(options, decide(options))
        sure[name] = {
            "threshold": threshold,
            "sure": _mixed("".join("10"[not bit] for bit in reading.little[:8].flatten().tolist())),
        }
    rounds = {}
    for threshold in DRAFTED_FROM:
        runs = [
            moerun.generate(
                model,
                window[None, :PROMPT],
                moerun.BigLittle(threshold, lossless=True),
                do_sample=False,
                max_new_tokens=NEW,
                eos_token_id=None,
            ).rounds
            for window in windows[:4]
        ]
        rounds[f"drafts from {threshold:g}"] = [
            [r.little_passes, r.drafted[0], r.accepted[0]] for run in runs for r in run
        ]
    return {"sure": sure, "rounds": rounds}


def _mixed(bits: str) -> str:
    """The same bits in an order that jumps between windows and places, in strides that share no factor with
    their number: the beginning of a window falls back more often than its end, and a short stretch of the
    pattern shall have the share of the whole."""
    return "".join(bits[i * STRIDE % len(bits)] for i in range(len(bits)))
