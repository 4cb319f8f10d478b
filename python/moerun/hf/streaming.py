"""A streamer that prints text while it is generated and measures prefill and decode apart."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase, TextStreamer


class Speed(NamedTuple):
    """Tokens and seconds of the two phases. The first new token comes out of prefill."""

    prefill_tokens: int
    prefill_s: float
    decode_tokens: int
    decode_s: float

    def __str__(self) -> str:
        phases = [
            ("prefill", self.prefill_tokens, self.prefill_s),
            ("decode", self.decode_tokens, self.decode_s),
        ]
        return ", ".join(
            f"{name} {tokens / seconds:.1f} tokens/s ({tokens} tokens)" if tokens else f"{name} of no tokens"
            for name, tokens, seconds in phases
        )


class TimedStreamer(TextStreamer):
    """transformers' TextStreamer for one generate() call of one sequence, with `speed()` afterwards."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, skip_prompt: bool = False, **decode_options: Any
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_options)
        self._puts: list[tuple[float, int]] = []  # when, tokens: the prompt, then what each step gave

    def put(self, value: torch.Tensor) -> None:
        self._puts.append((time.perf_counter(), value.numel()))
        super().put(value)

    def speed(self) -> Speed:
        """What was measured. Raises ValueError before the first token has come."""
        if len(self._puts) < 2:
            raise ValueError("no token has been generated yet")
        (start, prompt_tokens), (first, _), *decoded = self._puts
        return Speed(prompt_tokens, first - start, sum(n for _, n in decoded), self._puts[-1][0] - first)
