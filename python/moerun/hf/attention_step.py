"""Self-attention of a few tokens in the engine: a decode step of a transformers model.

transformers' own code makes some thirty small operations of it, and copies all keys and values to add those
of one token. Here it is one call, and keys and values get room to grow (make_room). What it does not take
goes on as before: long prompts, caches of other kinds (sliding windows, static, quantised), models that were
asked for another attention than "sdpa", and multi-head latent attention.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from moerun.dense import Attention, HeadNorm
from moerun.hf.dense import is_watched, linear_of, may_skip_torch, mix_in, modules_of
from moerun.hf.held import Held
from moerun.hf.norm import norm_of

if TYPE_CHECKING:
    from moerun.engine import Engine

MOST_TOKENS = 8  # of a sequence; heuristic: where torch's kernel for many queries catches up
LEAST_ROOM = 256  # keys
_ROOM = "moerun_room"  # attribute of a cache's layer

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_NORMS = ("q_norm", "k_norm")
# transformers' modules whose arithmetic dense.Attention has.
_KNOWN = ("Qwen3MoeAttention", "Qwen2MoeAttention", "OlmoeAttention", "MixtralAttention", "Glm4MoeAttention")


class EngineAttention(torch.nn.Module):
    moerun_attention: Held[Attention]
    config: Any
    layer_idx: int

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **others: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        layer = self.cache_layer(hidden_states, attention_mask, past_key_values, others)
        if layer is not None:
            sequences, tokens = hidden_states.shape[:2]
            past = layer.keys.shape[2]
            keys, values = make_room(layer, tokens)
            cos, sin = rotation_rows(position_embeddings, sequences)
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
        if x.shape[1] > MOST_TOKENS or not may_skip_torch(x) or self.config._attn_implementation != "sdpa":
            return None
        if not _usable(mask, x) or others.get("output_attentions"):
            return None
        if self.training or type(cache) is not DynamicCache or len(cache.layers) <= self.layer_idx:
            return None
        layer: Any = cache.layers[self.layer_idx]
        if not is_plain(layer) or layer.keys.dtype is not x.dtype or layer.keys.shape[0] != x.shape[0]:
            return None
        modules = self._modules
        for name, linear in zip(_PROJECTIONS, self.moerun_attention.value.projections, strict=True):
            if linear_of(modules[name]) is not linear:
                return None
        for name in _NORMS:
            if name in modules and norm_of(modules[name]) is None:
                return None
        return layer


def is_plain(layer: Any) -> bool:
    """Whether a layer of a cache keeps all keys and values of a prompt that it has seen."""
    return type(layer) is DynamicLayer and layer.keys is not None and layer.keys.ndim == 4


def _usable(mask: torch.Tensor | None, x: torch.Tensor) -> bool:
    if mask is None:
        return True
    return mask.dtype is torch.bool and mask.ndim == 4 and mask.shape[:3] == (x.shape[0], 1, x.shape[1])


def rotation_rows(
    embeddings: tuple[torch.Tensor, torch.Tensor], sequences: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [1 or sequences, tokens, width] as float32 [sequences * tokens, width].

    All layers of a step get the same two tensors, so the result is kept beside the first: a copy, since a
    view of it would keep it alive forever.
    """
    cos, sin = embeddings
    kept = getattr(cos, "_moerun_rows", None)
    if kept is None or kept[0] is not sin or kept[1].shape[0] != sequences * cos.shape[1]:
        floats = (t.float().expand(sequences, -1, -1) for t in embeddings)
        rows = (t.clone(memory_format=torch.contiguous_format).view(-1, t.shape[-1]) for t in floats)
        kept = cos._moerun_rows = (sin, *rows)  # type: ignore[attr-defined]
    return kept[1], kept[2]


def make_room(layer: Any, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Lengthens a layer's keys and values by `tokens`, whose contents are yet to be written.

    The layer's tensors become the front of longer ones, [sequences, heads, room, width], which are returned.
    Where they are not the front of ours any more (selected, copied, repeated), or shorter than they were
    (cropped: somebody may have kept the longer ones), they are copied to a new place first, as transformers
    does for every token.
    """
    past = layer.keys.shape[2]
    room: _Room | None = layer.__dict__.get(_ROOM)
    if room is None or not room.holds(layer) or past < room.filled or past + tokens > room.keys.shape[2]:
        sequences, heads, _, width = layer.keys.shape
        size = (sequences, heads, past + max(past // 2, LEAST_ROOM) + tokens, width)
        room = _Room(layer.keys.new_empty(size), layer.values.new_empty(size))
        room.keys[:, :, :past] = layer.keys
        room.values[:, :, :past] = layer.values
        setattr(layer, _ROOM, room)
    room.filled = past + tokens
    layer.keys = room.front_keys = room.keys.narrow(2, 0, past + tokens)
    layer.values = room.front_values = room.values.narrow(2, 0, past + tokens)
    return room.keys, room.values


def reuse_room(layer: Any) -> None:
    """Says of a cropped layer that nobody has kept what was behind its end: it may be overwritten."""
    room: _Room | None = layer.__dict__.get(_ROOM)
    if room is not None and room.holds(layer):
        room.filled = layer.keys.shape[2]


@dataclasses.dataclass
class _Room:
    """Keys and values with room behind those that are there."""

    keys: torch.Tensor
    values: torch.Tensor
    filled: int = 0  # columns that were written
    front_keys: torch.Tensor | None = None  # what the layer was given last
    front_values: torch.Tensor | None = None

    def holds(self, layer: Any) -> bool:
        if layer.keys is self.front_keys and layer.values is self.front_values:
            return True
        return _is_front(layer.keys, self.keys) and _is_front(layer.values, self.values)


def _is_front(part: torch.Tensor, room: torch.Tensor) -> bool:
    return (
        part.data_ptr() == room.data_ptr()
        and part.stride() == room.stride()
        and part.shape[:2] == room.shape[:2]
        and part.dtype is room.dtype
    )


def attention_of(module: Any) -> Attention | None:
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
        if type(module).__name__ not in _KNOWN:
            continue
        linears = [linear for name in _PROJECTIONS if (linear := linear_of(module._modules[name]))]
        if len(linears) < len(_PROJECTIONS) or len({m.format for m in linears[:3]}) > 1:
            continue
        query, key, value, output = linears
        norm = None
        if "q_norm" in module._modules:
            norm = HeadNorm(
                module.q_norm.weight.detach(), module.k_norm.weight.detach(), module.q_norm.variance_epsilon
            )
        attention = Attention(
            engine,
            query,
            key,
            value,
            output,
            module.head_dim,
            scale=module.scaling,
            norm=norm,
            clip=getattr(module.config, "clip_qkv", None),
        )
        module.moerun_attention = Held(attention, 0)
        mix_in(EngineAttention, module)
        count += 1
    return count
