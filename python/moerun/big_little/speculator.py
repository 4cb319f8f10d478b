"""Lossless decoding: little passes draft tokens, one pass with all experts verifies them (self-speculation).

The experts that the drafts have chosen are known before the verification, as for a fallback (prefetch.py).
What a verification yields replaces the drafts' keys and values as well, so nothing approximate stays behind.
Drafting of a sequence ends before the first token of which the little pass is not sure; it goes by the
distribution and not by the token drawn, or sampling would be biased.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from moerun.big_little.decoder import Decide
from moerun.big_little.draft_length import DraftLength
from moerun.big_little.passes import Passes
from moerun.big_little.prefetch import announced
from moerun.big_little.sampling import choose, verify_greedy, verify_sampled
from moerun.big_little.selection import Choice, joined
from moerun.big_little.sequences import Sequences


class Round(NamedTuple):
    """What one round did: little passes, drafts and accepted drafts per sequence."""

    little_passes: int
    drafted: list[int]
    accepted: list[int]


class _Drafts:
    """Tokens that were drafted for each sequence, and the distributions that they were drawn from."""

    def __init__(self, batch: int) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(batch)]
        self.probs: list[list[torch.Tensor]] = [[] for _ in range(batch)]
        self.choices: list[dict[int, Choice]] = []  # of each little pass, by layer

    @property
    def counts(self) -> list[int]:
        return [len(tokens) for tokens in self.tokens]


class Speculator:
    """Adds tokens to sequences, round by round.

    Parameters
    ----------
    passes
        With the prompts in it.
    sequences
        With their first new tokens.
    decide
        Whether a little pass is sure enough to draft from.
    longest
        R: the most tokens of a draft.
    """

    def __init__(
        self, passes: Passes, sequences: Sequences, decide: Decide, longest: int, do_sample: bool
    ) -> None:
        self.rounds: list[Round] = []
        self._passes = passes
        self._sequences = sequences
        self._decide = decide
        self._do_sample = do_sample
        self._draft_length = DraftLength(longest)

    def round(self) -> None:
        """Every unfinished sequence gains at least one token."""
        newest, unfinished = self._sequences.newest, self._sequences.unfinished.clone()
        drafts, little_passes = self._draft(newest, unfinished)
        self._passes.take_back(little_passes)
        logits = self._verify(newest, unfinished, drafts)

        yielded = self._yielded(logits, drafts)
        taken = self._sequences.append(yielded)
        accepted = [max(min(len(y) - 1, t), 0) for y, t in zip(yielded, taken, strict=True)]
        # Of a sequence that was finished before, nothing needs to be kept; it must only not get in the way.
        most = max(taken)
        width = logits.shape[1]
        self._passes.take_back_per_row(
            [width - (t if going else most) for t, going in zip(taken, unfinished.tolist(), strict=True)]
        )

        self._draft_length.observe(drafts.counts, accepted)
        self.rounds.append(Round(little_passes, drafts.counts, accepted))
        tokens_by_kind = self._passes.counter.tokens
        tokens_by_kind["drafted"] += sum(drafts.counts)
        tokens_by_kind["accepted"] += sum(accepted)
        tokens_by_kind["little"] += sum(accepted)

    def _draft(self, newest: torch.Tensor, unfinished: torch.Tensor) -> tuple[_Drafts, int]:
        """Drafts, and the number of little passes that they took."""
        drafts = _Drafts(len(newest))
        tokens, drafting = newest, unfinished.clone()
        # A round yields one token more than it accepts.
        most = min(self._draft_length.length, self._sequences.room - 1)
        for done in range(most):
            logits = self._passes.little(tokens, drafting)
            drafts.choices.append(self._passes.selection.choices_of(drafting))
            drafting &= self._decide(logits)
            if not bool(drafting.any()):
                return drafts, done + 1
            scores = self._sequences.scores(logits, drafts.tokens)
            tokens = choose(scores, self._do_sample)
            for row in drafting.nonzero()[:, 0].tolist():
                drafts.tokens[row].append(int(tokens[row]))
                if self._do_sample:
                    drafts.probs[row].append(scores[row].softmax(-1))
        return drafts, max(most, 0)

    def _verify(self, newest: torch.Tensor, unfinished: torch.Tensor, drafts: _Drafts) -> torch.Tensor:
        """Logits of the full model after the newest token and after each draft, [B, longest draft + 1, V]."""
        counts = newest.new_tensor(drafts.counts)
        width = int(counts.max()) + 1
        tokens = newest[:, None].repeat(1, width)
        for row, drafted in enumerate(drafts.tokens):
            tokens[row, 1 : 1 + len(drafted)] = newest.new_tensor(drafted)
        columns = torch.arange(width, device=newest.device)
        routed = (columns <= counts[:, None]) & unfinished[:, None]
        with announced(self._passes.selection.layers, joined(drafts.choices)):
            return self._passes.full(tokens, routed, logits=width)

    def _yielded(self, logits: torch.Tensor, drafts: _Drafts) -> list[list[int]]:
        """The tokens that each sequence gains, from the logits [B, width, V] of its verification."""
        scores = [
            self._sequences.scores(logits[:, j], [tokens[:j] for tokens in drafts.tokens])
            for j in range(logits.shape[1])
        ]
        if not self._do_sample:
            targets = torch.stack([s.argmax(-1) for s in scores], dim=1).tolist()
            return [verify_greedy(d, t) for d, t in zip(drafts.tokens, targets, strict=True)]
        return [
            verify_sampled(tokens, drafts.probs[row], [s[row].softmax(-1) for s in scores])
            for row, tokens in enumerate(drafts.tokens)
        ]
