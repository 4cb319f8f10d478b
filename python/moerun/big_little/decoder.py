"""Decoding in step: every sequence gains a token per step; the unsure ones fall back, together, in one pass.

MoBiLE (arXiv 2510.12357); the refresh is beyond the paper (as IFMoE re-encodes its drafts).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from moerun.big_little import cache as kv
from moerun.big_little.passes import Passes
from moerun.big_little.prefetch import announced

Decide = Callable[[torch.Tensor], torch.Tensor]  # logits fp32 [B, V] -> bool [B]: accept the little pass


class Step(NamedTuple):
    """Logits of the next token, fp32 [B, V], and bool [B]: whether they are a little pass's."""

    logits: torch.Tensor
    little: torch.Tensor


class Decoder:
    """Turns tokens into the logits of the next ones.

    Parameters
    ----------
    passes
        With the prompt in it.
    decide
        Whether a little pass is accepted.
    refresh
        R of BigLittle; 0 is never.
    """

    def __init__(self, passes: Passes, decide: Decide, refresh: int = 0) -> None:
        self._passes = passes
        self._decide = decide
        self._refresh = refresh
        self._counts: torch.Tensor | None = None  # accepted since the last refresh, int64 [B]
        self._since_refresh: list[torch.Tensor] = []  # tokens [B] of the positions since then

    def step(self, tokens: torch.Tensor, unfinished: torch.Tensor) -> Step:
        """Runs one token of each sequence, int64 [B].

        For sequences that are not `unfinished`, bool [B], no expert works, and the result means nothing.
        """
        counter = self._passes.counter
        logits = self._passes.little(tokens, unfinished)
        sure = self._decide(logits) | ~unfinished
        accepted, unsure = sure & unfinished, ~sure
        if self._refresh_is_due(tokens, accepted):
            counter.tokens["refreshed"] += int(unfinished.sum()) * len(self._since_refresh)
            return Step(self._encode_again(unfinished), torch.zeros_like(sure))
        counter.tokens["little"] += int(accepted.sum())
        counter.tokens["fallback"] += int(unsure.sum())
        if bool(unsure.any()):
            logits = self._fall_back(tokens, logits, unsure)
        return Step(logits, accepted)

    def _fall_back(self, tokens: torch.Tensor, logits: torch.Tensor, unsure: torch.Tensor) -> torch.Tensor:
        """The same position with all experts for the unsure sequences; the others keep what they have."""
        passes, everyone = self._passes, bool(unsure.all())
        little = None if everyone else kv.last_columns(passes.cache, 1)
        passes.take_back(1)
        selection = passes.selection
        with announced(selection.layers, selection.choices_of(unsure)):
            full = passes.full(tokens[:, None], unsure[:, None])[:, -1]
        if little is None:
            return full
        kv.restore_columns(passes.cache, little, ~unsure)
        return torch.where(unsure[:, None], full, logits)

    def _refresh_is_due(self, tokens: torch.Tensor, accepted: torch.Tensor) -> bool:
        if not self._refresh:
            return False
        self._since_refresh.append(tokens)
        self._counts = accepted.long() if self._counts is None else self._counts + accepted
        return int(self._counts.max()) >= self._refresh

    def _encode_again(self, unfinished: torch.Tensor) -> torch.Tensor:
        """All positions since the last refresh with all experts, in one batch; logits after the last one."""
        tokens = torch.stack(self._since_refresh, dim=1)
        self._passes.take_back(tokens.shape[1])
        logits = self._passes.full(tokens, unfinished[:, None].expand_as(tokens))[:, -1]
        self._counts, self._since_refresh = None, []
        return logits
