"""Quality of big-little decoding with the demo model: agreement, perplexity and experts read, by threshold.

Two texts: Python files of this project, which the model was not trained on, and what the model itself writes
(greedily, with all experts) after beginnings of them. Both are read token by token as decoding would have
written them (moerun.big_little.reading). Chance accepts as many tokens as the confidence that it is compared
with, to the token; how far confidence is ahead is bootstrapped over the windows, which lie in different
files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

import moerun
import moerun.hf
from bench.report import ROOT
from moerun.big_little.confidence import confidence_of
from moerun.big_little.generate import decide
from moerun.big_little.options import MEASURES
from moerun.big_little.reading import Reading, Text, windows_of

T = TypeVar("T")
DEMO = ROOT / "examples" / "pycode-moe"
PROMPT, STEPS, WINDOWS = 32, 96, 24
THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
REFRESH = 8
SEEDS = 2  # of the random baseline
RESAMPLES = 4000  # of the bootstrap
SHARES = (0.25, 0.5, 0.75)  # of little tokens, at which the measures of confidence are compared
FALLBACKS = (0.08, 0.15, 0.25)  # what the paper's speed implies if copies decide (docs/results/mobile.md)
PROMPTS, NEW = 20, 64  # of the lossless runs
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None}
STRIDE = 331  # prime
# Lossless runs: what share of its experts a draft uses, and the thresholds from which tokens are drafted.
DRAFTS = {"half": (0.5, (0.0, 0.3, 0.5, 0.7)), "quarter": (0.25, (0.0, 0.2, 0.4, 0.6))}
IMPOSED = {"half": (0.0, 0.3), "quarter": (0.0, 0.2)}  # those whose pattern is imposed elsewhere


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
    runs = len(THRESHOLDS) * (2 + SEEDS) - 2 * SEEDS + len(SHARES) * (SEEDS + len(MEASURES))
    with tqdm(total=len(texts) * runs * STEPS, desc="reading texts", unit="token", disable=None) as bar:
        figures = {name: _figures(text, bar) for name, text in texts.items()}
    return {
        "texts": figures,
        "experts_per_token": sum(layer.spec.top_k for layer in model.moerun_engine.layers),
        "tokens": WINDOWS * STEPS,
        "lossless": [
            _lossless(model, windows, name, share, threshold)
            for name, (share, thresholds) in DRAFTS.items()
            for threshold in thresholds
        ],
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
        mixed = 0 < plain.little_share < 1  # else there is nothing to draw
        chance = [_by_chance(read, plain.little, seed) for seed in range(SEEDS)] if mixed else [plain]
        rows.append(
            {
                "threshold": threshold,
                "confidence": _row(plain),
                "refreshed": _row(refreshed),
                "chance": _mean([_row(reading) for reading in chance]),
                "ahead": _ahead(plain, chance),
            }
        )
    return {
        "rows": rows,
        "full_perplexity": float(text.losses.mean().exp()),
        "measures": _compare_measures(text, read),
    }


def _by_chance(read: Any, little: torch.Tensor, seed: int) -> Reading:
    """A reading that accepts as many little passes as there are in `little`, bool [W, T], drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(little.numel(), generator=generator) < int(little.sum())
    columns = iter(drawn.view(little.shape).unbind(1))
    return read(moerun.BigLittle(), lambda logits: next(columns))


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def _ahead(reading: Reading, chance: list[Reading]) -> dict[str, float]:
    """Agreement of a reading less that of chance: the mean, and 95 % of the bootstrap over windows."""
    by_chance = torch.stack([other.agrees.float().mean(1) for other in chance]).mean(0)
    ahead = (reading.agrees.float().mean(1) - by_chance).numpy()  # [W]
    drawn = np.random.default_rng(0).integers(len(ahead), size=(RESAMPLES, len(ahead)))
    low, high = np.percentile(ahead[drawn].mean(1), (2.5, 97.5))
    return {"mean": float(ahead.mean()), "low": float(low), "high": float(high)}


def _row(reading: Reading) -> dict[str, float]:
    return {
        "little_share": reading.little_share,
        "agreement": 1 - reading.disagreement,
        "perplexity": reading.perplexity,
        "experts_per_token": reading.experts_per_token,
    }


def _confidences(text: Text, measure: str) -> torch.Tensor:
    """Of every little pass of a text that is read with few experts only."""
    seen: list[torch.Tensor] = []

    def accept(logits: torch.Tensor) -> torch.Tensor:
        seen.append(confidence_of(measure)(logits))
        return torch.ones(len(logits), dtype=torch.bool)

    text.read(moerun.BigLittle(0.0), accept)
    return torch.stack(seen, 1).flatten()


def _compare_measures(text: Text, read: Any) -> list[dict[str, Any]]:
    """Agreement with each measure of confidence, at thresholds that accept about the same share."""
    rows = []
    values = {measure: _confidences(text, measure) for measure in MEASURES}
    for share in SHARES:
        chance: list[Reading] = []
        for measure in MEASURES:
            threshold = float(values[measure].quantile(1 - share).clamp(0, 1))
            reading = read(moerun.BigLittle(threshold, measure=measure))
            # The measures accept the same share within a per cent: one chance for all.
            chance = chance or [_by_chance(read, reading.little, seed) for seed in range(SEEDS)]
            ahead = _ahead(reading, chance)
            rows.append({"measure": measure, "threshold": threshold, **_row(reading), "ahead": ahead})
    return rows


def little_k(top_k: int, share: float) -> int:
    """Experts of a draft that uses this share of them."""
    return max(round(top_k * share), 1)


def _drafting(threshold: float, share: float) -> moerun.BigLittle:
    checkpoint = moerun.Checkpoint(DEMO)
    top_k = checkpoint.spec(checkpoint.moe_layers[0]).top_k
    return moerun.BigLittle(threshold, little_k(top_k, share), lossless=True)


def _lossless(model: Any, windows: torch.Tensor, name: str, share: float, threshold: float) -> dict[str, Any]:
    """Lossless runs of single prompts: how drafts fare, and what is read."""
    options = _drafting(threshold, share)
    layers = len(model.moerun_engine.layers)
    drafted = accepted = new = experts = rounds = passes = 0
    for window in windows[:PROMPTS]:
        found = moerun.generate(model, window[None, :PROMPT], options, **GREEDY)
        statistics = found.statistics
        drafted += statistics.drafted_tokens
        accepted += statistics.accepted_tokens
        new += statistics.new_tokens - 1
        experts += statistics.experts_read
        passes += statistics.little_passes
        rounds += len(found.rounds)
    full = sum(layer.spec.top_k for layer in model.moerun_engine.layers)
    verifying = experts - passes * layers * options.little_k
    return {
        "drafts": name,
        "threshold": threshold,
        "acceptance": accepted / drafted if drafted else 0.0,
        "tokens_per_round": new / rounds,
        "little_passes_per_token": passes / new,
        "experts_per_token": experts / new,
        "verifying_per_token": verifying / new,
        "shared": 1 - verifying / full / (drafted + rounds),  # of what its tokens would read one by one
    }


def _equality(model: Any, dtype: str, windows: torch.Tensor) -> dict[str, Any]:
    """How many greedy texts of a lossless run are the full model's, and how close a call the others were."""
    equal, margins = 0, []
    for window in windows[:PROMPTS]:
        prompt = window[None, :PROMPT]
        usual = model.generate(prompt, **GREEDY)
        found = moerun.generate(model, prompt, moerun.BigLittle(0.3, lossless=True), **GREEDY).sequences
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
    values = _confidences(own, MEASURES[0])
    thresholds = {"0.7": 0.7}
    thresholds |= {f"{share:.0%} fall back": float(values.quantile(share)) for share in FALLBACKS}
    sure = {}
    for name, threshold in thresholds.items():
        options = moerun.BigLittle(threshold)
        reading = own.read(options, decide(options))
        sure[name] = {
            "threshold": threshold,
            "sure": "".join(mixed(["10"[not bit] for bit in reading.little[:8].flatten().tolist()])),
        }
    rounds = {}
    for name, thresholds in IMPOSED.items():
        share = DRAFTS[name][0]
        for threshold in thresholds:
            options = _drafting(threshold, share)
            runs = [moerun.generate(model, w[None, :PROMPT], options, **GREEDY).rounds for w in windows[:8]]
            rounds[f"{name} of the experts, from {threshold:g}"] = {
                "share": share,
                "rounds": [[r.little_passes, r.drafted[0], r.accepted[0]] for run in runs for r in run],
            }
    return {"sure": sure, "rounds": rounds}


def mixed(entries: Sequence[T]) -> list[T]:
    """The same entries in an order that jumps between windows and places, in strides that share no factor
    with their number: the beginning of a window fares otherwise than its end, and a short stretch of the
    pattern shall fare as the whole."""
    return [entries[i * STRIDE % len(entries)] for i in range(len(entries))]
