"""Reads a text as big-little decoding would have written it, and compares with the full model.

Every token of the text is fed in turn, whatever the model would have chosen; so keys and values become
approximate as they do in generation, and two runs can be compared token by token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch

from moerun.big_little.decoder import Decide, Decoder
from moerun.big_little.options import BigLittle
from moerun.big_little.passes import Passes
from moerun.big_little.setup import selection_for
from moerun.big_little.statistics import Counter

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Reading(NamedTuple):
    """What was found, one entry per window and token after its prompt.

    Attributes
    ----------
    little
        bool [W, T]: a little pass was accepted.
    agrees
        bool [W, T]: the likeliest next token is the full model's.
    nll
        fp32 [W, T]: minus the log probability of the text's next token.
    experts_per_token
        Experts that a window reads per token, all layers together, as if it were alone: those of the little
        pass, all of them again for a fallback, and for a refresh those that its tokens need together.
    """

    little: torch.Tensor
    agrees: torch.Tensor
    nll: torch.Tensor
    experts_per_token: float

    @property
    def disagreement(self) -> float:
        return 1 - float(self.agrees.float().mean())

    @property
    def little_share(self) -> float:
        return float(self.little.float().mean())

    @property
    def perplexity(self) -> float:
        return float(self.nll.mean().exp())


class Text:
    """Windows of a text, and what the full model says about them.

    Parameters
    ----------
    windows
        int64 [W, prompt + T + 1]: each begins with a prompt, and its last token is only predicted.
    prompt
        Tokens at the beginning of a window that are read with all experts and not compared.
    """

    def __init__(self, model: PreTrainedModel, windows: torch.Tensor, prompt: int) -> None:
        self.model, self.windows, self.prompt = model, windows, prompt
        choices, losses = [], []
        for window in windows:  # one by one: logits of all at once may not fit
            with torch.no_grad():
                logits = model(window[None, :-1]).logits[0, prompt:].float()
            choices.append(logits.argmax(-1))
            losses.append(torch.nn.functional.cross_entropy(logits, window[prompt + 1 :], reduction="none"))
        self.choices, self.losses = torch.stack(choices), torch.stack(losses)  # [W, T]

    @property
    def steps(self) -> int:
        """T: tokens of a window that are compared."""
        return self.choices.shape[1]

    def read(
        self,
        options: BigLittle,
        decide: Decide,
        on_step: Callable[[], object] = lambda: None,
    ) -> Reading:
        """Reads all windows side by side, with the options' little_k and refresh, and accepts by `decide`."""
        selection, counter = selection_for(self.model, options), Counter()
        selection.sequences = len(self.windows)
        windows, prompt = self.windows, self.prompt
        everyone = torch.ones(len(windows), dtype=torch.bool)
        little, agrees, nll = [], [], []
        with torch.no_grad(), selection:
            passes = Passes(self.model, selection, torch.ones_like(windows[:, :prompt]), counter)
            passes.prefill(windows[:, :prompt])
            decoder = Decoder(passes, decide, options.refresh)
            for t in range(self.steps):
                step = decoder.step(windows[:, prompt + t], everyone)
                target = windows[:, prompt + t + 1]
                little.append(step.little)
                agrees.append(step.logits.argmax(-1) == self.choices[:, t])
                nll.append(torch.nn.functional.cross_entropy(step.logits, target, reduction="none"))
                on_step()
        return Reading(
            torch.stack(little, 1),
            torch.stack(agrees, 1),
            torch.stack(nll, 1),
            counter.experts_after_prompt / self.choices.numel(),
        )


def windows_of(tokens: list[int], prompt: int, steps: int, most: int) -> torch.Tensor:
    """Up to `most` windows for `Text`, int64 [W, prompt + steps + 1], spread over a text.

    Raises
    ------
    ValueError
        The text is shorter than one window.
    """
    length = prompt + steps + 1
    count = min(most, len(tokens) // length)
    if count == 0:
        raise ValueError(
            f"the text has {len(tokens)} tokens, but {length} are needed at least; give a longer one"
        )
    stride = (len(tokens) - length) // max(count - 1, 1)
    return torch.tensor([tokens[i * stride : i * stride + length] for i in range(count)])
