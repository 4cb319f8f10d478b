"""Self-attention of a few tokens in the engine: a decode step of a transformers model.

transformers' own code makes some thirty small operations of it, and copies all keys and values to add those
of one token. Here it is one call, and keys and values get room to grow (make_room). What it does not take
goes on as before: long prompts, caches of other kinds (static, quantised, expanded keys of latent attention),
models that were asked for another attention than their family's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from moerun.dense import CachedAttention
from moerun.hf.attention_families import Family, family_of
from moerun.hf.cache_room import make_room
from moerun.hf.dense import is_watched, linear_of, may_skip_torch, mix_in, modules_of
from moerun.hf.held import Held
from moerun.hf.norm import norm_of
from moerun.hf.original import Original

if TYPE_CHECKING:
    from moerun.engine import Engine

MOST_TOKENS = 8  # of a sequence; heuristic: where torch's kernel for many queries catches up

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class EngineAttention(torch.nn.Module):
    moerun_attention: Held[CachedAttention]
    moerun_family: Family
    moerun_sinks: Original | None  # the engine has a copy of them
    config: Any
    layer_idx: int

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Any,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **others: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        layer = self.cache_layer(hidden_states, attention_mask, past_key_values, others)
        if layer is not None:
            sequences, tokens = hidden_states.shape[:2]
            past = layer.keys.shape[2]
            keys, values = make_room(layer, tokens)
            cos, sin = self.rotation(position_embeddings, sequences)
            return self.moerun_attention.value.forward(
                hidden_states, cos, sin, keys, values, past, attention_mask
            ), None
        return super().forward(
            hidden_states=hidden_states,
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **others,
        )

    def cache_layer(self, x: torch.Tensor, mask: torch.Tensor | None, cache: Any, others: Any) -> Any:
        """This layer's keys and values, if all here is as it was when the engine took it, else None."""
        implementation = self.config._attn_implementation
        if x.shape[1] > MOST_TOKENS or not may_skip_torch(x):
            return None
        if implementation != self.moerun_family.implementation or others.get("output_attentions"):
            return None
        if implementation == "eager" and is_watched(self):
            return None
        if self.training or type(cache) is not DynamicCache or len(cache.layers) <= self.layer_idx:
            return None
        layer: Any = cache.layers[self.layer_idx]
        if not is_plain(layer) or layer.keys.dtype is not x.dtype or layer.keys.shape[0] != x.shape[0]:
            return None
        keys = layer.keys.shape[2] + x.shape[1]
        if not _usable(mask, (x.shape[0], 1, x.shape[1], keys), implementation) or not self.has_its_sinks():
            return None
        attention, modules = self.moerun_attention.value, self._modules
        if attention.cached[:3] != (*layer.keys.shape[1::2], layer.values.shape[3]):
            return None
        for name, linear in zip(self.moerun_family.linears, attention.projections, strict=True):
            if linear_of(modules[name]) is not linear:
                return None
        for name in self.moerun_family.norms:
            if name in modules and norm_of(modules[name]) is None:
                return None
        return layer

    def has_its_sinks(self) -> bool:
        return self.moerun_sinks is None or self.moerun_sinks.is_still(self._parameters["sinks"])

    def rotation(self, embeddings: Any, sequences: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See rotation_rows."""
        return rotation_rows(embeddings, sequences, self.moerun_family.one_angle)


def is_plain(layer: Any) -> bool:
    """Whether a layer of a cache keeps all keys and values that any token to come may see, and no more."""
    if layer.keys is None or layer.keys.ndim != 4:
        return False
    if type(layer) is DynamicSlidingWindowLayer:
        return not getattr(layer, "record_past", False) and layer.keys.shape[2] < layer.sliding_window
    return type(layer) is DynamicLayer


def _usable(mask: torch.Tensor | None, shape: tuple[int, ...], implementation: str) -> bool:
    """Whether a mask says which keys are seen, or what is added to their scores.

    "eager" adds any mask, and shows all keys to all tokens without one.
    """
    if mask is None:
        return implementation == "sdpa" or shape[2] == 1
    known = (mask.dtype is torch.bool and implementation == "sdpa") or mask.dtype in _FLOATS
    return known and mask.shape == shape


def rotation_rows(
    embeddings: Any, sequences: int, one_angle: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [1 or sequences, tokens, width] as float32 [sequences * tokens, width].

    They are a pair of tensors, or one of complex numbers. `one_angle`: there is one for the two elements that
    turn together, and it is returned for both. All layers of a step get the same tensors, so the result is
    kept beside the first: a copy, since a view of it would keep it alive forever.
    """
    is_complex = isinstance(embeddings, torch.Tensor)
    first: Any = embeddings if is_complex else embeddings[0]
    second: Any = None if is_complex else embeddings[1]
    kept = getattr(first, "_moerun_rows", None)
    if kept is None or kept[0] is not second or kept[1].shape[0] != sequences * first.shape[1]:
        parts = (first.real, first.imag) if is_complex else (first, second)
        both = (torch.cat((t, t), -1) if one_angle else t for t in parts)
        floats = (t.float().expand(sequences, -1, -1) for t in both)
        rows = (t.clone(memory_format=torch.contiguous_format).view(-1, t.shape[-1]) for t in floats)
        kept = first._moerun_rows = (second, *rows)
    return kept[1], kept[2]


def attention_of(module: Any) -> CachedAttention | None:
    """The engine's attention of a module, if nobody watches calls of the module."""
    if not isinstance(module, EngineAttention) or is_watched(module):
        return None
    return module.moerun_attention.value


def attach_attention_steps(model: torch.nn.Module, engine: Engine) -> int:
    """Lets the engine take decode steps of attention modules that it knows; returns how many.

    Their projections and norms must have been given to the engine before (attach_linears, attach_norms).
    """
    count = 0
    for module in modules_of(model):
        family = family_of(module)
        if family is None:
            continue
        linears = [linear_of(module._modules[name]) for name in family.linears]
        attention = None if None in linears else family.build(engine, module, linears)
        if attention is None:
            continue
        sinks = getattr(module, "sinks", None)
        module.moerun_attention = Held(attention, 0)
        module.moerun_family = family
        module.moerun_sinks = None if sinks is None else Original(sinks)
        mix_in(EngineAttention, module)
        count += 1
    return count
