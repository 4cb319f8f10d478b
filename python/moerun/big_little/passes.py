"""The passes of one batch through a model: prompt, little, full; and taking positions back.

Every pass runs all sequences, so that the dense layers and the cache stay one batch; sequences that have no
part in a pass skip the experts, which is where the time goes.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from moerun.big_little import cache as kv
from moerun.big_little.statistics import Counter

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

    from moerun.big_little.selection import ExpertSelection


class Passes:
    """One batch of sequences in a model.

    Parameters
    ----------
    model
        A causal language model.
    selection
        Entered already.
    mask
        int64 [B, columns], zeros for padding, which comes first: of what is in `cache` and of the prompt.
    counter
        Is told what each pass cost.
    cache
        To go on from, as `cache.check_cache` accepts; None makes one.
    model_inputs
        Further arguments of the model's forward.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        selection: ExpertSelection,
        mask: torch.Tensor,
        counter: Counter,
        cache: DynamicCache | None = None,
        **model_inputs: Any,
    ) -> None:
        self.selection = selection
        self.counter = counter
        self.cache = kv.new_cache() if cache is None else cache
        self.mask = mask
        self._model = model
        self._model_inputs = model_inputs

    def prefill(self, tokens: torch.Tensor) -> torch.Tensor:
        """The prompt, int64 [B, columns], with all experts; returns the logits after it, fp32 [B, V].

        Of a prompt that the cache knows in part, the rest is run.
        """
        known = self.cache.get_seq_length()
        return self._forward("prefill", tokens[:, known:], 1)[:, -1]

    def little(self, tokens: torch.Tensor, routed: torch.Tensor | None = None) -> torch.Tensor:
        """One token of each sequence, int64 [B], with few experts; returns logits fp32 [B, V].

        `routed`, bool [B]: sequences that go through experts.
        """
        self._extend_mask(1)
        return self._forward("little", tokens[:, None], 1, routed)[:, -1]

    def full(self, tokens: torch.Tensor, routed: torch.Tensor | None = None, logits: int = 1) -> torch.Tensor:
        """Tokens, int64 [B, q], with all experts; returns the logits after the last `logits`, [B, logits, V].

        `routed`, bool [B, q]: tokens that go through experts.
        """
        self._extend_mask(tokens.shape[1])
        return self._forward("full" if tokens.shape[1] == 1 else "batch", tokens, logits, routed)

    def take_back(self, columns: int) -> None:
        """Forget the latest positions of all sequences."""
        kv.drop_columns(self.cache, columns)
        self.mask = self.mask[:, : self.mask.shape[1] - columns]

    def take_back_per_row(self, counts: list[int]) -> None:
        """Forget the latest counts[b] positions of sequence b."""
        kv.drop_per_row(self.cache, counts)
        self.mask = kv.moved_mask(self.mask, counts)

    def _extend_mask(self, columns: int) -> None:
        ones = self.mask.new_ones((self.mask.shape[0], columns))
        self.mask = torch.cat([self.mask, ones], dim=1)

    def _forward(
        self, kind: str, tokens: torch.Tensor, logits: int, routed: torch.Tensor | None = None
    ) -> torch.Tensor:
        count = tokens.shape[1]
        positions = (self.mask.cumsum(-1) - 1).clamp(min=0)[:, -count:]
        read, begin = self.selection.experts_read, time.perf_counter()
        self.selection.use(kind == "little", routed, single=tokens.numel() == 1)
        output = self._model(
            input_ids=tokens,
            attention_mask=None if bool(self.mask.all()) else self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=logits,
            **self._model_inputs,
        )
        self.counter.passed(kind, count, time.perf_counter() - begin, self.selection.experts_read - read)
        return output.logits[:, -logits:].float()
