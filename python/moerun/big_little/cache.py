"""The key-value cache of a run, which can be taken back: by columns, or by a number of columns per sequence.

It keeps every position, also in layers that attend to a sliding window only (the mask limits those), as what
has left a window could not be brought back. Sequences are aligned at their ends, padding comes first.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from moerun.hf.cache_room import reuse_room

Column = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values of some columns, by layer

# What can be taken back, of transformers' names for the layers of a model.
_REWINDABLE_LAYERS = frozenset({"full_attention", "sliding_attention"})


def check_cache(config: Any, past_key_values: Any, cache_implementation: str | None, use_cache: bool) -> None:
    """Raises ValueError where big-little cannot take positions back, by the name of what is in the way."""
    others = sorted(set(getattr(config, "layer_types", None) or ()) - _REWINDABLE_LAYERS)
    if others:
        raise ValueError(
            f"big_little cannot run {config.model_type} models with layers of the types {', '.join(others)}: "
            "their state cannot be rewound by a token"
        )
    if not use_cache:
        raise ValueError("big_little needs the key-value cache; leave use_cache=False out")
    if cache_implementation not in (None, "dynamic"):
        raise ValueError(
            f"big_little cannot rewind the cache {cache_implementation!r}; leave cache_implementation out"
        )
    if past_key_values is None:
        return
    kinds = [type(layer) for layer in getattr(past_key_values, "layers", ())]
    wrong = [kind.__name__ for kind in kinds if kind is not DynamicLayer]
    if type(past_key_values) is not DynamicCache or wrong:
        name = wrong[0] if type(past_key_values) is DynamicCache else type(past_key_values).__name__
        raise ValueError(
            f"big_little cannot rewind a past_key_values of the type {name}; pass a DynamicCache() made "
            "without a config, or leave it out"
        )


def new_cache() -> DynamicCache:
    """An empty one whose layers all keep every position."""
    return DynamicCache()


def last_columns(cache: Cache, count: int) -> Column:
    """The keys and values of the latest `count` positions. They stay as they are when the cache changes."""
    return [
        (layer.keys[:, :, -count:].clone(), layer.values[:, :, -count:].clone()) for layer in _filled(cache)
    ]


def drop_columns(cache: Cache, count: int) -> None:
    """Takes back the latest `count` positions of all sequences."""
    for layer in _filled(cache):
        length = layer.keys.shape[-2] - count  # (by hand: what crop's argument means depends on the version)
        layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
        reuse_room(layer)


def restore_columns(cache: Cache, columns: Column, rows: torch.Tensor) -> None:
    """Puts back what `last_columns` gave for the sequences where `rows`, bool [B], is True."""
    for layer, (keys, values) in zip(_filled(cache), columns, strict=True):
        layer.keys[rows, :, -keys.shape[-2] :] = keys[rows]
        layer.values[rows, :, -values.shape[-2] :] = values[rows]


def drop_per_row(cache: Cache, counts: list[int]) -> None:
    """Takes back the latest counts[b] positions of sequence b; afterwards all end in one column again."""
    for layer in _filled(cache):
        layer.keys, layer.values = aligned(layer.keys, counts, 2), aligned(layer.values, counts, 2)
        reuse_room(layer)


def aligned(tensor: torch.Tensor, counts: list[int], dim: int) -> torch.Tensor:
    """`tensor` [B, ...] without the last counts[b] entries along `dim` of row b, rows moved to the end.

    What moves in at the beginning of a row means nothing; the mask of `moved_mask` hides it.
    """
    least = min(counts)
    kept = tensor.narrow(dim, 0, tensor.shape[dim] - least)
    if max(counts) == least:
        return kept
    kept = kept.clone()
    for row, count in enumerate(counts):
        if count > least:
            kept[row] = kept[row].roll(count - least, dims=dim - 1)
    return kept


def moved_mask(mask: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """The attention mask [B, columns] that belongs to a cache after `drop_per_row`."""
    mask = aligned(mask, counts, 1)
    hidden = torch.tensor([count - min(counts) for count in counts], device=mask.device)
    return mask * (torch.arange(mask.shape[1], device=mask.device) >= hidden[:, None])


def _filled(cache: Cache) -> list[Any]:
    layers: list[Any] = cache.layers
    return [layer for layer in layers if layer.is_initialized]
