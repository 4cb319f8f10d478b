"""The passes of the replay: which tokens go through the layers together, with how many of their experts.

Usually one pass per step of the trace. With big-little experts (MoBiLE, arXiv 2510.12357) every decoded token
has a pass with few experts, and one with all of them if it falls back, of which the routing is known by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moerun.replay.trace import PREFILL, Trace


@dataclass(frozen=True)
class Pass:
    """Tokens (their numbers in the trace) that go through all layers together.

    Attributes
    ----------
    step
        Of the trace; passes of one step stand next to each other.
    top_k
        Each token uses the first so many of the experts that it chose.
    known
        The routing of all layers is known when the pass begins: a fallback.
    """

    tokens: np.ndarray
    step: int
    top_k: int
    known: bool = False


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
    if not 1 <= little_k <= trace.top_k:
        raise ValueError(f"little_k is {little_k}; this trace has {trace.top_k} experts per token")
    if not len(sure):
        raise ValueError("sure is empty; it says of at least one token whether its little pass is accepted")
    passes: list[Pass] = []
    decoded = 0
    for step, tokens in enumerate(trace.steps()):
        if trace.phase[tokens[0]] == PREFILL:
            passes.append(Pass(tokens, step, trace.top_k))
            continue
        passes.append(Pass(tokens, step, little_k))
        if not sure[decoded % len(sure)]:
            passes.append(Pass(tokens, step, trace.top_k, known=True))
        decoded += 1
    return passes
