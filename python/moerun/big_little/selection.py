"""Which experts the passes of one run use: hooks before the experts of a model, while they are needed.

The routers are the model's own. In a little pass only the first little_k of each token's choice reach the
engine, so that it reads no others; what was left out is remembered for the fallback. A token that goes
through all experts alone is not watched: hooks would keep the engine from taking whole layers
(hf/decoder_step.py).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from moerun.engine import Layer

SKIPPED = -1  # an id that the engine leaves out


class Choice(NamedTuple):
    """What a layer's router chose: ids int64 [T, k] and weights [T, k], the largest weight first."""

    ids: torch.Tensor
    weights: torch.Tensor


def sorted_choice(ids: torch.Tensor, weights: torch.Tensor) -> Choice:
    """A choice in the order of its weights.

    DeepSeek's and GLM's routers return theirs in no order. The two that choose by sigmoid add a bias that
    balances the load while choosing; what an expert contributes is its weight, so the weight ranks it.
    """
    weights, order = weights.sort(dim=-1, descending=True, stable=True)
    return Choice(ids.gather(-1, order), weights)


def little_choice(choice: Choice, little_k: int, renormalize: bool) -> Choice:
    """The first `little_k` of a sorted choice; with `renormalize` their weights sum to what all summed to."""
    kept = choice.weights[:, :little_k]
    if renormalize:
        kept = kept.float()
        kept = kept * (choice.weights.float().sum(-1, keepdim=True) / kept.sum(-1, keepdim=True))
    return Choice(choice.ids[:, :little_k], kept)


def joined(choices: Sequence[Mapping[int, Choice]]) -> dict[int, Choice]:
    """The choices of several passes as one, by layer."""
    layers = choices[0] if choices else ()
    return {
        number: Choice(*(torch.cat(parts) for parts in zip(*(c[number] for c in choices), strict=True)))
        for number in layers
    }


class ExpertSelection:
    """A context manager; inside, `use` says what the next passes of this thread do.

    Other threads that run the same model meanwhile are not affected.

    Parameters
    ----------
    modules
        The experts modules by layer number; they are called with (hidden, ids, weights).
    layers
        The engine's layers by the same numbers.
    little_k
        Experts per token in a little pass, in the order of `modules`.
    renormalize
        Whether the family's routing weights sum to a constant.
    """

    def __init__(
        self,
        modules: Mapping[int, torch.nn.Module],
        layers: Mapping[int, Layer],
        little_k: Sequence[int],
        renormalize: bool,
    ) -> None:
        self.layers = layers
        self.choices: dict[int, Choice] = {}  # of the latest little pass, by layer
        self.experts_read = 0  # experts that were active, once per layer, pass and ...
        self.sequences = 1  # ... of so many equal parts of the tokens. 1: the batch shares what it reads
        self.modules = modules
        self._little_k = dict(zip(modules, little_k, strict=True))
        self._renormalize = renormalize
        self._thread = threading.get_ident()
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._little = False
        self._skipped: torch.Tensor | None = None

    def use(self, little: bool, routed: torch.Tensor | None = None, single: bool = False) -> None:
        """Says what the passes from now on do.

        Parameters
        ----------
        little
            Whether they use few experts.
        routed
            Bool, one per token of the pass in its order: tokens that are False go through no expert, and what
            comes out for them means nothing. None: all of them are True.
        single
            One pass follows, of a single token.
        """
        self._little = little
        self._skipped = None if routed is None or bool(routed.all()) else ~routed.flatten()
        if little:
            self.choices = {}
        if single and not little and self._skipped is None:
            self._stop_watching()
            self.experts_read += sum(layer.spec.top_k for layer in self.layers.values())
        else:
            self._watch()

    def choices_of(self, rows: torch.Tensor) -> dict[int, Choice]:
        """Of the latest little pass: the choices of the sequences `rows`, bool [B]."""
        if bool(rows.all()):
            return self.choices
        return {number: Choice(ids[rows], weights[rows]) for number, (ids, weights) in self.choices.items()}

    def __enter__(self) -> ExpertSelection:
        self._watch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_watching()

    def _watch(self) -> None:
        if self._hooks:
            return
        for number, module in self.modules.items():
            self._hooks.append(
                module.register_forward_pre_hook(
                    lambda _module, inputs, number=number: self._before(number, *inputs)
                )
            )

    def _stop_watching(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _before(
        self, number: int, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """What the experts of a layer are called with instead."""
        if threading.get_ident() != self._thread:
            return None
        if self._little:
            choice = self.choices[number] = sorted_choice(ids, weights)
            ids, weights = little_choice(choice, self._little_k[number], self._renormalize)
        if self._skipped is not None:
            ids = ids.masked_fill(self._skipped[:, None], SKIPPED)
        self.experts_read += _distinct(ids, self.sequences)
        return hidden, ids, weights


def _distinct(ids: torch.Tensor, parts: int) -> int:
    """How many experts occur in ids [T, k], counted in each of `parts` equal parts of the rows."""
    if ids.shape[0] == 1:
        return int((ids >= 0).sum())  # a token's own are distinct
    ordered = torch.nn.functional.pad(ids.reshape(parts, -1), (1, 0), value=SKIPPED).sort(-1).values
    return int((ordered[:, 1:] != ordered[:, :-1]).sum())
