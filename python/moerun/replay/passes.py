"""The passes of the replay: which tokens go through the layers together, with how many of their experts.

Usually one pass per step of the trace. With big-little experts (MoBiLE, arXiv 2510.12357) every decoded token
has a pass with few experts, and one with all of them if it falls back, of which the routing is known by then.
In the lossless mode little passes draft tokens, and one pass with all experts verifies them together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from moerun.replay.trace import PREFILL, Trace


@dataclass(frozen=True)
class Pass:
    """Tokens (their numbers in the trace) that go through all layers together.

    Attributes
    ----------
    step
        Of the trace, at which the token or the draft begins that the pass is part of.
    top_k
        Each token uses the first so many of the experts that it chose.
    known
        Of the tokens, the first so many have been through a little pass: their routing in all layers is known
        when this one begins.
    done
        Tokens that are generated when it is over; None: one for each that goes through.
    """

    tokens: np.ndarray
    step: int
    top_k: int
    known: int = 0
    done: int | None = None


def usual_passes(trace: Trace) -> list[Pass]:
    """Every step of a trace with all experts."""
    return [Pass(tokens, step, trace.top_k) for step, tokens in enumerate(trace.steps())]


def big_little_passes(trace: Trace, little_k: int, sure: Sequence[bool]) -> list[Pass]:
    """Passes of big-little experts.

    Parameters
    ----------
    little_k
        Experts per token in a little pass.
    sure
        Whether a decoded token's little pass is accepted; repeated if there are fewer than steps.

    Raises
    ------
    ValueError
        `little_k` is outside of 1..top_k, or `sure` is empty.
    """
    _check_little_k(trace, little_k)
    if not len(sure):
        raise ValueError("sure is empty; it says of at least one token whether its little pass is accepted")
    passes: list[Pass] = []
    decoded = 0
    for step, tokens in enumerate(trace.steps()):
        if trace.phase[tokens[0]] == PREFILL:
            passes.append(Pass(tokens, step, trace.top_k))
            continue
        if sure[decoded % len(sure)]:
            passes.append(Pass(tokens, step, little_k))
        else:
            passes.append(Pass(tokens, step, little_k, done=0))
            passes.append(Pass(tokens, step, trace.top_k, known=len(tokens)))
        decoded += 1
    return passes


def lossless_passes(trace: Trace, little_k: int, rounds: Sequence[tuple[int, int, int]]) -> list[Pass]:
    """Passes of the lossless mode, of a trace that decodes one token a step.

    A draft that is wrong is no token of the trace; its place is taken by the token that the trace has there.

    Parameters
    ----------
    little_k
        Experts per token in a little pass.
    rounds
        Little passes, drafts that are verified, and drafts that are right, round by round; repeated if there
        are fewer than needed.

    Raises
    ------
    ValueError
        `little_k` is outside of 1..top_k, `rounds` is empty or has one that cannot be, or a step decodes
        several tokens.
    """
    _check_little_k(trace, little_k)
    if not len(rounds):
        raise ValueError("rounds is empty; it says of at least one how many tokens it drafts and accepts")
    for little_passes, drafted, accepted in rounds:
        if not 0 <= accepted <= drafted <= little_passes:
            raise ValueError(
                f"a round of {little_passes} little passes cannot draft {drafted} tokens of which {accepted} "
                "are right"
            )
    passes: list[Pass] = []
    repeated = cycle(rounds)
    decoded: list[int] = []  # of one sequence
    first = 0
    for step, tokens in enumerate(trace.steps()):
        if trace.phase[tokens[0]] == PREFILL:
            passes += _rounds(decoded, first, little_k, trace.top_k, repeated)
            passes.append(Pass(tokens, step, trace.top_k))
            decoded, first = [], step + 1
            continue
        if len(tokens) != 1:
            raise ValueError(
                f"step {step} decodes {len(tokens)} tokens; drafts are replayed one sequence at a time"
            )
        decoded.append(int(tokens[0]))
    return passes + list(_rounds(decoded, first, little_k, trace.top_k, repeated))


def _rounds(
    tokens: list[int], first_step: int, little_k: int, top_k: int, rounds: Iterator[tuple[int, int, int]]
) -> Iterator[Pass]:
    """The passes of successive tokens; the last round drafts no more than are left."""
    at = 0
    while at < len(tokens):
        little_passes, drafted, accepted = next(rounds)
        left, step = len(tokens) - at, first_step + at
        drafted, accepted = min(drafted, left - 1), min(accepted, left - 1)
        for token in tokens[at : at + little_passes]:
            yield Pass(np.array([token]), step, little_k, done=0)
        together = np.array(tokens[at : at + drafted + 1])
        yield Pass(together, step, top_k, known=min(little_passes, drafted + 1), done=accepted + 1)
        at += accepted + 1


def _check_little_k(trace: Trace, little_k: int) -> None:
    if not 1 <= little_k <= trace.top_k:
        raise ValueError(f"little_k is {little_k}; this trace has {trace.top_k} experts per token")
