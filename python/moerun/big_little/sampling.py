"""From logits to tokens: greedy and sampled choice, and the test that makes drafts lossless.

Speculative sampling: Leviathan et al., arXiv 2211.17192, section 2.3; Chen et al., arXiv 2302.01318.
"""

from __future__ import annotations

import torch


def choose(scores: torch.Tensor, do_sample: bool) -> torch.Tensor:
    """Tokens int64 [B] from scores fp32 [B, V]: the largest, or one drawn from their softmax."""
    if not do_sample:
        return scores.argmax(-1)
    return torch.multinomial(scores.softmax(-1), 1)[:, 0]


def verify_greedy(drafts: list[int], targets: list[int]) -> list[int]:
    """The tokens that a verification yields: the targets up to and including the first that differs.

    `targets[j]` is the full model's choice after `drafts[:j]`; there is one more of them than drafts.
    """
    right = 0
    while right < len(drafts) and drafts[right] == targets[right]:
        right += 1
    return targets[: right + 1]


def verify_sampled(
    drafts: list[int], draft_probs: list[torch.Tensor], target_probs: list[torch.Tensor]
) -> list[int]:
    """The tokens that a verification yields, distributed exactly as the full model's.

    Draft j was drawn from `draft_probs[j]` [V] and is accepted with the probability p / q; the first that is
    not is replaced by one drawn from the rest, max(p - q, 0). After the last draft one more is drawn.
    """
    tokens: list[int] = []
    for draft, q, p in zip(drafts, draft_probs, target_probs, strict=False):
        if torch.rand(()) * q[draft] >= p[draft]:
            rest = (p - q).clamp(min=0)
            # All zero only if p and q are equal up to rounding; then p itself is the rest.
            return [*tokens, _draw(rest if bool(rest.sum() > 0) else p)]
        tokens.append(draft)
    return [*tokens, _draw(target_probs[len(drafts)])]


def _draw(weights: torch.Tensor) -> int:
    return int(torch.multinomial(weights, 1))
