"""Finds a threshold: the smallest one at which few enough next tokens differ from the full model's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from moerun.big_little.generate import decide
from moerun.big_little.options import BigLittle
from moerun.big_little.reading import Text

STEP = 0.01  # between the thresholds that are considered
RUNS = 8  # readings at most: one of threshold 0, and a bisection of 100 steps


class Tuned(NamedTuple):
    """A threshold, and what was found with it on the text."""

    threshold: float
    disagreement: float
    little_share: float
    experts_per_token: float


def tune_threshold(
    text: Text,
    options: BigLittle,
    max_disagreement: float,
    on_step: Callable[[], object] = lambda: None,
) -> Tuned:
    """The smallest threshold, to a hundredth, with which the text's next tokens disagree little enough.

    Every threshold that is considered reads the text anew, as what is accepted changes what comes after it;
    that disagreement falls with the threshold is assumed, and bisected.

    Parameters
    ----------
    options
        Everything but the threshold: little_k, refresh and measure are used.
    max_disagreement
        Share of the tokens whose likeliest successor may differ from the full model's, 0..1.
    on_step
        Called after every token of a reading; at most RUNS * text.steps times.

    Raises
    ------
    ValueError
        `max_disagreement` is outside of 0..1, or more disagree even where hardly a token is little.
    """
    if not 0 <= max_disagreement <= 1:
        raise ValueError(f"max_disagreement is {max_disagreement}; it is a share of the tokens, 0 to 1")

    def probe(threshold: float) -> Tuned:
        tried = replace(options, threshold=threshold)
        reading = text.read(tried, decide(tried), on_step)
        return Tuned(threshold, reading.disagreement, reading.little_share, reading.experts_per_token)

    found = probe(0.0)
    if found.disagreement <= max_disagreement:
        return found
    too_low, enough = 0, round(1 / STEP)
    best: Tuned | None = None
    while enough - too_low > 1:
        middle = (too_low + enough) // 2
        found = probe(round(middle * STEP, 2))
        if found.disagreement <= max_disagreement:
            enough, best = middle, found
        else:
            too_low = middle
    if best is None:
        best = probe(1.0)
    if best.disagreement > max_disagreement:
        raise ValueError(
            f"{best.disagreement:.2%} of the next tokens differ from the full model's even at threshold 1, "
            f"where rounding alone decides; allow more than {max_disagreement:.2%}"
        )
    return best
