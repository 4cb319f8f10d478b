"""Speed of big-little decoding on this machine's CPU, at the expert sizes of Qwen3-30B-A3B.

The checkpoint is random (bench/checkpoint.py), so its confidence means nothing: which tokens are sure, and
how drafts fare, is the demo model's, imposed pass by pass. What the passes cost is measured: the model's own
code with the engine's experts, one token at a time, behind a short prompt. All ways of decoding take turns,
in an order that is reversed from round to round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import torch
from tqdm import tqdm

import moerun
import moerun.hf
from bench.checkpoint import random_qwen3_moe
from bench.mobile.quality import DRAFTS, little_k
from bench.rounds import Spread, waited_s
from moerun.big_little.passes import Passes
from moerun.big_little.setup import selection_for
from moerun.big_little.statistics import Counter

LAYERS = 4
WORDS = 12_672  # of Qwen3's 151,936: the head's share of a step is then that of all 48 layers
PROMPT, TOKENS, ROUNDS = 64, 24, 9


class Decoding:
    """One batch of one sequence, and the ways to go on from its prompt by some tokens.

    Only the ways that use few experts enter the selection: with all experts the model is as without it.
    """

    def __init__(self, model: Any, little_k: int, prompt: torch.Tensor, generator: torch.Generator) -> None:
        self.selection = selection_for(model, moerun.BigLittle(little_k=little_k))
        self._passes = Passes(model, self.selection, torch.ones_like(prompt), Counter())
        self._generator = generator
        self._prompt = prompt.shape[1]
        with self.selection:
            self._passes.prefill(prompt)

    def _random(self, count: int) -> torch.Tensor:
        return torch.randint(WORDS, (1, count), generator=self._generator)

    def _full(self, count: int) -> None:
        self._passes.full(self._random(count), logits=count)

    def big(self) -> None:
        """All experts."""
        for _ in range(TOKENS):
            self._full(1)

    def little(self) -> None:
        """Half of them."""
        for _ in range(TOKENS):
            self._passes.little(self._random(1)[0])

    def big_little(self, sure: Iterator[bool]) -> None:
        """Half of them, and all again where the pattern falls back."""
        for _ in range(TOKENS):
            self._passes.little(self._random(1)[0])
            if not next(sure):
                self._passes.take_back(1)
                self._full(1)

    def lossless(self, rounds: Iterator[tuple[int, int, int]]) -> int:
        """Drafts and verifications as in the pattern; returns the tokens that they make."""
        made = 0
        while made < TOKENS:
            little_passes, drafted, accepted = next(rounds)
            for _ in range(little_passes):
                self._passes.little(self._random(1)[0])
            self._passes.take_back(little_passes)
            self._full(drafted + 1)
            self._passes.take_back(drafted - accepted)
            made += accepted + 1
        return made

    def rewind(self) -> None:
        """Back to the end of the prompt."""
        self._passes.take_back(self._passes.mask.shape[1] - self._prompt)


def measure(threads: int, patterns: dict[str, Any], rounds: int = ROUNDS) -> dict[str, Any]:
    """Tokens per second of every way of decoding: medians over interleaved rounds, and ratios within them."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    model = moerun.hf.from_pretrained(random_qwen3_moe(LAYERS, WORDS), cpu_threads=threads)
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(WORDS, (1, PROMPT), generator=generator)
    experts: dict[str, float] = {}
    top_k = model.moerun_engine.layers[0].spec.top_k
    with torch.no_grad():
        decodings = {
            share: Decoding(model, little_k(top_k, share), prompt, generator) for share, _ in DRAFTS.values()
        }
        ways = _ways(decodings, patterns)
        seconds = {name: [] for name in ways}
        waited, begin = waited_s(), 0.0
        for number in tqdm(range(rounds + 1), desc="measuring speed", disable=None):
            if number == 1:  # the first warms up
                waited, begin = waited_s(), time.perf_counter()
            for name in list(ways) if number % 2 else list(ways)[::-1]:
                decoding, way = ways[name]
                read, started = decoding.selection.experts_read, time.perf_counter()
                with decoding.selection:
                    made = way() or TOKENS
                taken = (time.perf_counter() - started) / made
                decoding.rewind()
                if number:
                    seconds[name].append(taken)
                    here = (decoding.selection.experts_read - read) / made
                    experts[name] = experts.get(name, 0.0) + here / rounds
        waiting = (waited_s() - waited) / (time.perf_counter() - begin) / threads
    model.moerun_engine.close()
    return {
        "threads": threads,
        "layers": LAYERS,
        "words": WORDS,
        "tokens": TOKENS,
        "rounds": rounds,
        "waiting": waiting,
        "rows": [
            {
                "way": name,
                "tokens_per_s": vars(Spread.of([1 / t for t in times])),
                "over_big": vars(Spread.of([b / t for b, t in zip(seconds["big"], times, strict=True)])),
                "experts_per_token": experts[name],
            }
            for name, times in seconds.items()
        ],
    }


def _ways(
    decodings: dict[float, Decoding], patterns: dict[str, Any]
) -> dict[str, tuple[Decoding, Callable[[], int | None]]]:
    half = decodings[DRAFTS["half"][0]]
    ways: dict[str, tuple[Decoding, Callable[[], int | None]]] = {
        "big": (half, half.big),
        "little": (half, half.little),
    }
    for name, pattern in patterns["sure"].items():
        bits = cycle(bit == "1" for bit in pattern["sure"])
        ways[f"big-little, {name}"] = half, lambda bits=bits: half.big_little(bits)
    for name, found in patterns["rounds"].items():
        drafting = decodings[found["share"]]
        turns = cycle(tuple(r) for r in found["rounds"])
        ways[f"lossless, {name}"] = drafting, lambda d=drafting, turns=turns: d.lossless(turns)
    return ways
