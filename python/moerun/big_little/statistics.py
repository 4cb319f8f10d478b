"""What a big-little run did: counted while it runs, and as figures afterwards."""

from __future__ import annotations

from collections import Counter as Tally
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Statistics:
    """One run of `moerun.generate`. Tokens count over all sequences of the batch.

    Attributes
    ----------
    new_tokens
        Tokens that were generated. The first of each sequence comes out of the prompt's pass.
    little_tokens
        Of them, those that a little pass decided; with `lossless`, drafts that were accepted.
    fallbacks
        Tokens that were run again with all experts as the little pass was not sure, but for those that a
        refresh covered.
    refreshed_tokens
        Tokens that were encoded again with all experts after they had been accepted.
    drafted_tokens, accepted_tokens
        Of a lossless run: drafts that were verified, and those that were right.
    little_passes, full_passes, batch_passes
        Passes of the model after the prompt: with few experts, of one token with all experts, of several
        tokens with all experts.
    experts_read
        Experts that were active, once per layer and pass, after the prompt.
    prefill_experts_read
        The same of the prompt.
    bytes_read
        Their weights, prompt included, as the engine has counted them (also for others that used it then).
    prefill_s, decode_s
        Time of the prompt's pass, and of everything after it.
    saved_s
        What the new tokens would have taken with all experts, less `decode_s`; by the mean pass of one token
        with all experts of this run. None without one, and for a batch, of which such passes run a part.
        Negative where big-little was slower.
    """

    new_tokens: int
    little_tokens: int
    fallbacks: int
    refreshed_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    little_passes: int
    full_passes: int
    batch_passes: int
    experts_read: int
    prefill_experts_read: int
    bytes_read: int
    prefill_s: float
    decode_s: float
    saved_s: float | None

    @property
    def little_share(self) -> float:
        """Of the new tokens after the first, those that a little pass decided."""
        return self.little_tokens / self.new_tokens if self.new_tokens else 0.0

    @property
    def acceptance(self) -> float:
        """Of the drafts that were verified, those that were right."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else 0.0


class Counter:
    """Counts one run. `passes.Passes` and the two ways of decoding add to it."""

    def __init__(self) -> None:
        self.tokens: Tally[str] = Tally()  # new, little, fallback, refreshed, drafted, accepted
        self.passes: Tally[str] = Tally()
        self.seconds: Tally[str] = Tally()
        self.experts: Tally[str] = Tally()

    def passed(self, kind: str, columns: int, seconds: float, experts: int) -> None:
        """A pass of the kind "prefill", "little", "full" (one token) or "batch" (several) is over."""
        self.passes[kind] += 1
        self.seconds[kind] += seconds  # type: ignore[assignment]
        self.experts[kind] += experts

    @property
    def experts_after_prompt(self) -> int:
        """Experts read by all passes but the prompt's."""
        return sum(self.experts[kind] for kind in ("little", "full", "batch"))

    def statistics(self, wall_s: float, batch: int, bytes_read: int) -> Statistics:
        """Figures of the run, which took `wall_s` for `batch` sequences."""
        decode_s = wall_s - self.seconds["prefill"]
        full = self.passes["full"]
        steps = max(self.tokens["new"] - 1, 0)  # of a single sequence
        usual_s = self.seconds["full"] / full * steps if full and batch == 1 else None
        return Statistics(
            new_tokens=self.tokens["new"],
            little_tokens=self.tokens["little"],
            fallbacks=self.tokens["fallback"],
            refreshed_tokens=self.tokens["refreshed"],
            drafted_tokens=self.tokens["drafted"],
            accepted_tokens=self.tokens["accepted"],
            little_passes=self.passes["little"],
            full_passes=full,
            batch_passes=self.passes["batch"],
            experts_read=self.experts_after_prompt,
            prefill_experts_read=self.experts["prefill"],
            bytes_read=bytes_read,
            prefill_s=self.seconds["prefill"],
            decode_s=decode_s,
            saved_s=None if usual_s is None else usual_s - decode_s,
        )


def as_figures(statistics: Statistics) -> dict[str, Any]:
    """For JSON: all fields, and what follows from them."""
    return {
        **vars(statistics),
        "little_share": statistics.little_share,
        "acceptance": statistics.acceptance,
    }
