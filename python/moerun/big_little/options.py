"""BigLittle: how a generation mixes passes with few experts and passes with all of them. Plain values.

Values are checked here; whether they fit a model is checked in plan.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MEASURES = ("probability", "margin", "entropy")  # of confidence.py
DEFAULT_THRESHOLD = 0.7  # gamma, of MoBiLE
DEFAULT_DRAFT = 8  # tokens; R of a lossless run that names none (heuristic)


@dataclass(frozen=True)
class BigLittle:
    """Big-little experts (MoBiLE, arXiv 2510.12357): half of the experts where that is confident, else all.

    Parameters
    ----------
    threshold
        gamma, in 0..1: the confidence from which a token's little pass is accepted. 0 always accepts.
    little_k
        Experts per token in a little pass: one number, or one per layer with experts, first layer first.
        None: half of the model's top_k, rounded up.
    refresh
        R: after so many accepted tokens they are encoded again with all experts, in one batch, which replaces
        their approximate keys and values. 0: never. With `lossless`: the most tokens that are drafted before
        they are verified; 0 means `DEFAULT_DRAFT`.
    lossless
        Little passes only draft tokens, and one pass with all experts verifies them: greedy text is the full
        model's (up to rounding), sampled text has its distribution.
    measure
        What confidence is: "probability" (the largest softmax probability of the next token), "margin" (that
        minus the second largest) or "entropy" (1 - entropy / log of the vocabulary).

    Raises
    ------
    ValueError
        A value outside of its range, or an unknown measure.
    """

    threshold: float = DEFAULT_THRESHOLD
    little_k: int | Sequence[int] | None = None
    refresh: int = 0
    lossless: bool = False
    measure: str = "probability"

    def __post_init__(self) -> None:
        if not (_is_number(self.threshold) and 0 <= self.threshold <= 1):
            raise ValueError(
                f"threshold is {self.threshold!r}; it is a confidence and lies within 0 (every token is "
                "little) and 1 (nearly none is)"
            )
        if not _is_whole(self.refresh) or self.refresh < 0:
            raise ValueError(
                f"refresh is {self.refresh!r}; it is a number of tokens: at least 1, or 0 for the default "
                "(no refresh; with lossless, drafts of at most 8 tokens)"
            )
        if self.measure not in MEASURES:
            raise ValueError(f"measure must be one of {', '.join(MEASURES)}, got {self.measure!r}")
        if self.little_k is not None:
            ks = self.little_k if isinstance(self.little_k, Sequence) else [self.little_k]
            if not all(_is_whole(k) and k >= 1 for k in ks):
                raise ValueError(
                    f"little_k is {self.little_k!r}; a little pass uses at least one expert per token, so "
                    "give a whole number of at least 1, or one per layer"
                )

    @property
    def draft(self) -> int:
        """R of a lossless run."""
        return self.refresh or DEFAULT_DRAFT

    def little_k_of_layers(self, layers: int, top_k: int) -> tuple[int, ...]:
        """Experts per token in a little pass, one number per layer with experts.

        Raises
        ------
        ValueError
            The model has one expert per token, a schedule has another number of layers, or a number is above
            `top_k`.
        """
        if top_k < 2:
            raise ValueError(
                "this model uses 1 expert per token (num_experts_per_tok): there is no smaller number for a "
                "little pass; generate without big_little"
            )
        given = self.little_k
        schedule = tuple(given) if isinstance(given, Sequence) else (given or math.ceil(top_k / 2),) * layers
        if len(schedule) != layers:
            raise ValueError(
                f"little_k names {len(schedule)} layers, but this model has {layers} with experts; give one "
                "number for each, or a single one"
            )
        if max(schedule) > top_k:
            raise ValueError(
                f"little_k is {max(schedule)}, but this model uses {top_k} experts per token; give at most "
                f"{top_k}"
            )
        return schedule


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
