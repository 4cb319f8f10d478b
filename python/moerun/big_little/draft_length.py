"""How many tokens to draft before they are verified: more while drafts are right, fewer when they are not.

It goes by what was accepted and not by the clock, so that a seed gives the same text on any machine.
"""

from __future__ import annotations


class DraftLength:
    """`length` tokens, 1 to `longest`."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self.length = min(2, longest)  # heuristic: little is lost if the first drafts are wrong

    def observe(self, drafted: list[int], accepted: list[int]) -> None:
        """What became of the last drafts: tokens per sequence. Sequences without a draft say nothing."""
        counts = [(d, a) for d, a in zip(drafted, accepted, strict=True) if d]
        if not counts:
            return
        if all(d == a for d, a in counts):
            if max(d for d, _ in counts) == self.length:
                self.length = min(self.length + 1, self._longest)
            return
        mean = sum(a for _, a in counts) / len(counts)
        self.length = max(1, min(round(mean) + 1, self.length))
