"""A table of how many tokens each expert of each layer has processed, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

_BARS = " ▁▂▃▄▅▆▇█"
MAX_BARS = 64  # a row fits on a terminal of 100 columns


def usage_table(tokens_by_layer: Mapping[int, np.ndarray]) -> str:
    """Expert usage, one line a layer.

    Parameters
    ----------
    tokens_by_layer
        Layer number -> tokens processed per expert, int64 [E] ("expert_tokens" in `Engine.stats`).

    Returns
    -------
    str
        Per layer: experts used of E, the busiest expert and its share of the work, and a bar per expert in
        the order of their numbers, scaled to the layer's busiest. Above 64 experts, a bar is the mean of
        neighbours.
    """
    lines = ["layer  experts used  busiest expert  tokens per expert"]
    for number, tokens in tokens_by_layer.items():
        total, busiest = int(tokens.sum()), int(tokens.argmax())
        used = f"{np.count_nonzero(tokens)} of {len(tokens)}"
        share = f"#{busiest} {tokens[busiest] / total:.1%}" if total else "none"
        lines.append(f"{number:>5}  {used:>12}  {share:>14}  {_bars(tokens)}")
    return "\n".join(lines)


def _bars(tokens: np.ndarray) -> str:
    """One character per expert, or per group of neighbours; none but zero is blank."""
    groups = np.array_split(tokens, min(len(tokens), MAX_BARS))
    heights = np.array([group.mean() for group in groups])
    levels = np.ceil(heights / max(heights.max(), 1e-9) * (len(_BARS) - 1)).astype(int)
    return "".join(_BARS[level] for level in levels)
