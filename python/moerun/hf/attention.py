"""Attention of few queries over many keys, as a decode step needs it, for bf16 models on the CPU.

torch's scaled_dot_product_attention packs keys and values anew for every head there: one query over 540 keys
takes 2.4 ms a layer (32 heads, 4 of keys and values, 2 cores), over 4096 keys 15 ms. Two matrix products per
head of keys and values take 0.12 and 0.44 ms, and read keys and values once. So for what the engine does not
take (see attention_step.py), transformers' "sdpa" goes through here. It keeps its name, since others ask for
it by name (continuous batching, masks), and stays what it was for all other models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

FEW_QUERIES = 8  # heuristic: where torch's own kernel has as many it catches up
_STAMP = "moerun_few_queries"


def attach_attention(model: torch.nn.Module) -> None:
    """Stamps the attention modules of `model`, and lets stamped ones choose between the two ways."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for module in model.modules():
        if hasattr(module, "num_key_value_groups"):
            setattr(module, _STAMP, True)
    theirs = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if not hasattr(theirs, _STAMP):  # else it has been done for another model
        ALL_ATTENTION_FUNCTIONS.register("sdpa", _chooser(theirs))


def _chooser(theirs: Callable[..., Any]) -> Callable[..., Any]:
    def sdpa(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **others: Any,
    ) -> tuple[torch.Tensor, None]:
        if hasattr(module, _STAMP) and not dropout and not _uses(others) and _few(query, attention_mask):
            return few_queries(query, key, value, attention_mask, scaling).transpose(1, 2), None
        return theirs(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others)

    setattr(sdpa, _STAMP, True)
    return sdpa


def _uses(others: dict[str, Any]) -> bool:
    """Whether the call asks for something that few_queries lacks."""
    return any(others.get(name) is not None for name in ("cache", "position_bias", "softcap", "s_aux"))


def _few(query: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Without a mask several queries are causal; torch knows how."""
    on_cpu = query.device.type == "cpu" and query.dtype is torch.bfloat16
    return on_cpu and query.shape[2] <= (1 if mask is None else FEW_QUERIES)


def few_queries(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None = None,
) -> torch.Tensor:
    """softmax(scaling * query @ key.T + mask) @ value, rounded to the tensors' type where eager rounds.

    Parameters
    ----------
    query, key, value
        [batch, heads, queries, width], [batch, kv heads, keys, width] and [batch, kv heads, keys, value
        width]; the heads of queries that share a head of keys lie side by side.
    mask
        None, or [batch or 1, heads or 1, queries, at least keys]: True where a query sees a key, or what is
        added to the scores.
    scaling
        width ** -0.5 if None.

    Returns
    -------
    torch.Tensor
        [batch, heads, queries, value width].
    """
    batch, heads, queries, width = query.shape
    kv_heads, keys = key.shape[1:3]
    packed = query.reshape(batch, kv_heads, heads // kv_heads * queries, width)
    scores = (packed @ key.transpose(2, 3)).float() * (width**-0.5 if scaling is None else scaling)
    if mask is not None:
        scores = scores.view(batch, heads, queries, keys)
        mask = mask[..., :keys]
        least = torch.finfo(torch.float32).min  # not -inf: a query that sees no key (padding) must not be nan
        scores = scores.masked_fill(~mask, least) if mask.dtype is torch.bool else scores + mask
        scores = scores.clamp_min(least)
    weights = scores.view(*packed.shape[:3], keys).softmax(-1).to(value.dtype)
    return (weights @ value).view(batch, heads, queries, value.shape[3])
