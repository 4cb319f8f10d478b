"""Big-little decoding of one sequence in its plainest form, with transformers' own experts, as the oracle.

A pass with few experts is the model with a smaller top_k in its routers; what has to be taken back is
computed again from the prompt on.
"""

from __future__ import annotations

import torch
from transformers import DynamicCache, PreTrainedModel


def _routers(model: PreTrainedModel) -> list[torch.nn.Module]:
    return [module for module in model.modules() if isinstance(getattr(module, "top_k", None), int)]


class EagerBigLittle:
    """Positions of one sequence, each run with few or with all experts, in pieces."""

    def __init__(self, model: PreTrainedModel, little_k: int, prompt: list[int]) -> None:
        self.model = model
        self.routers = _routers(model)
        assert self.routers
        self.top_k = self.routers[0].top_k
        self.little_k = little_k
        self.pieces: list[tuple[list[int], bool]] = [(prompt, False)]  # tokens that ran together, and how

    @torch.no_grad()
    def logits(self) -> torch.Tensor:
        """After the last position, fp32 [V]."""
        cache = DynamicCache()
        for tokens, little in self.pieces:
            for router in self.routers:
                router.top_k = self.little_k if little else self.top_k
            output = self.model(torch.tensor([tokens]), past_key_values=cache, use_cache=True)
        for router in self.routers:
            router.top_k = self.top_k
        return output.logits[0, -1]

    def after(self, token: int, little: bool) -> torch.Tensor:
        """Logits after one more token."""
        self.pieces.append(([token], little))
        return self.logits()


def decode(
    model: PreTrainedModel, prompt: list[int], new_tokens: int, little_k: int, threshold: float, refresh: int
) -> tuple[list[int], list[bool]]:
    """Greedy tokens, and of each after the first whether a little pass decided it."""
    run = EagerBigLittle(model, little_k, prompt)
    tokens, little = [int(run.logits().argmax())], []
    approximate, since = 0, 0
    while len(tokens) < new_tokens:
        logits = run.after(tokens[-1], little=True)
        sure = bool(logits.softmax(-1).max() >= threshold)
        approximate, since = approximate + sure, since + 1
        if refresh and approximate >= refresh:
            again = [token for piece, _ in run.pieces[-since:] for token in piece]
            run.pieces[-since:] = [(again, False)]
            logits, sure = run.logits(), False
            approximate = since = 0
        elif not sure:
            run.pieces.pop()
            logits = run.after(tokens[-1], little=False)
        tokens.append(int(logits.argmax()))
        little.append(sure)
    return tokens, little
