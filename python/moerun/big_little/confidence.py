"""How sure a distribution of the next token is: one number in 0..1, more is surer.

MoBiLE (arXiv 2510.12357) takes the largest probability; the others are here to be compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

Confidence = Callable[[torch.Tensor], torch.Tensor]  # logits fp32 [..., V] -> [...]


def largest_probability(logits: torch.Tensor) -> torch.Tensor:
    """The largest softmax probability."""
    return torch.exp(logits.amax(-1) - logits.logsumexp(-1))


def margin(logits: torch.Tensor) -> torch.Tensor:
    """The largest softmax probability minus the second largest."""
    best = logits.topk(2, dim=-1).values - logits.logsumexp(-1, keepdim=True)
    return best[..., 0].exp() - best[..., 1].exp()


def certainty(logits: torch.Tensor) -> torch.Tensor:
    """1 - entropy / log(V): 1 for a single possible token, 0 for the uniform distribution."""
    logs = logits.log_softmax(-1)
    terms = torch.where(logs.isneginf(), 0.0, logs.exp() * logs)  # 0 log 0 = 0
    return (1 + terms.sum(-1) / math.log(logits.shape[-1])).clamp(0, 1)


_BY_NAME: dict[str, Confidence] = {
    "probability": largest_probability,
    "margin": margin,
    "entropy": certainty,
}


def confidence_of(measure: str) -> Confidence:
    """The function of one of options.MEASURES."""
    return _BY_NAME[measure]
