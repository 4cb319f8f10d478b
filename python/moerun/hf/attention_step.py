"""Self-attention of a few tokens in the engine: a decode step of a transformers model.

transformers' own code makes some thirty small operations of it, and copies all keys and values to add those
of one token. Here it is one call, and keys and values get room to grow (make_room). What it does not take
goes on as before: long prompts, caches of other kinds (static, quantised), models that were asked for another
attention than their family's.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from moerun.dense import Attention, HeadNorm
from moerun.hf.dense import is_watched, linear_of, may_skip_torch, mix_in, modules_of
from moerun.hf.held import Held
from moerun.hf.norm import norm_of
from moerun.hf.original import Original

if TYPE_CHECKING:
    from moerun.engine import Engine

MOST_TOKENS = 8  # of a sequence; heuristic: where torch's kernel for many queries catches up
LEAST_ROOM = 256  # keys
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_ROOM = "moerun_room"  # attribute of a cache's layer

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_NORMS = ("q_norm", "k_norm")


class _Family(NamedTuple):
    implementation: str = "sdpa"  # of attention; "eager" gives weights too, which only a watcher would miss
    one_angle: bool = False  # whether cosines and sines come once for the two elements that they turn


# transformers' modules whose arithmetic dense.Attention has.
_KNOWN = {
    "Qwen3MoeAttention": _Family(),
    "Qwen2MoeAttention": _Family(),
    "OlmoeAttention": _Family(),
    "MixtralAttention": _Family(),
    "Glm4MoeAttention": _Family(),
    "GptOssAttention": _Family("eager", one_angle=True),
}


class EngineAttention(torch.nn.Module):
    moerun_attention: Held[Attention]
    moerun_family: _Family
    moerun_sinks: Original | None  # the engine has a copy of them
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
        modules = self._modules
        for name, linear in zip(_PROJECTIONS, self.moerun_attention.value.projections, strict=True):
            if linear_of(modules[name]) is not linear:
                return None
        for name in _NORMS:
            if name in modules and norm_of(modules[name]) is None:
                return None
        return layer

    def has_its_sinks(self) -> bool:
        return self.moerun_sinks is None or self.moerun_sinks.is_still(self._parameters["sinks"])

    def rotation(
        self, embeddings: tuple[torch.Tensor, torch.Tensor], sequences: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
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
    embeddings: tuple[torch.Tensor, torch.Tensor], sequences: int, one_angle: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [1 or sequences, tokens, width] as float32 [sequences * tokens, width].

    `one_angle`: they come once for the two elements that turn by an angle, and are returned for both. All
    layers of a step get the same two tensors, so the result is kept beside the first: a copy, since a view of
    it would keep it alive forever.
    """
    cos, sin = embeddings
    kept = getattr(cos, "_moerun_rows", None)
    if kept is None or kept[0] is not sin or kept[1].shape[0] != sequences * cos.shape[1]:
        both = [torch.cat((t, t), -1) if one_angle else t for t in embeddings]
        floats = (t.float().expand(sequences, -1, -1) for t in both)
        rows = (t.clone(memory_format=torch.contiguous_format).view(-1, t.shape[-1]) for t in floats)
        kept = cos._moerun_rows = (sin, *rows)  # type: ignore[attr-defined]
    return kept[1], kept[2]


def make_room(layer: Any, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Lengthens a layer's keys and values by `tokens`, whose contents are yet to be written.

    The layer's tensors become a part of longer ones, which are returned from where that part began:
    [sequences, heads, room, width]. A layer with a sliding window forgets what leaves it, at the front. Where
    its tensors are not that part any more (selected, copied, repeated), or shorter than they were (cropped:
    somebody may have kept the longer ones), they are copied to a new place first, as transformers does for
    every token.
    """
    past = layer.keys.shape[2]
    room: _Room | None = layer.__dict__.get(_ROOM)
    if room is None or not room.holds(layer) or not room.fits(past, tokens):
        room = _Room.around(layer, tokens)
        setattr(layer, _ROOM, room)
    begin, end = room.first, room.first + past + tokens
    if layer.is_sliding:
        layer.cumulative_length += tokens
        room.first = max(begin, end - layer.sliding_window + 1)
    room.filled = end
    layer.keys = room.front_keys = room.keys.narrow(2, room.first, end - room.first)
    layer.values = room.front_values = room.values.narrow(2, room.first, end - room.first)
    return (room.keys[:, :, begin:], room.values[:, :, begin:]) if begin else (room.keys, room.values)


def reuse_room(layer: Any) -> None:
    """Says of a cropped layer that nobody has kept what was behind its end: it may be overwritten."""
    room: _Room | None = layer.__dict__.get(_ROOM)
    if room is not None and room.holds(layer):
        room.filled = room.first + layer.keys.shape[2]


@dataclasses.dataclass
class _Room:
    """Keys and values with room behind those that are there."""

    keys: torch.Tensor
    values: torch.Tensor
    first: int = 0  # column of the layer's first
    filled: int = 0  # end of the columns that were written
    front_keys: torch.Tensor | None = None  # what the layer was given last
    front_values: torch.Tensor | None = None

    @staticmethod
    def around(layer: Any, tokens: int) -> _Room:
        """With a copy of the layer's."""
        past = layer.keys.shape[2]
        size = past + max(past // 2, LEAST_ROOM) + tokens

        def copied(t: torch.Tensor) -> torch.Tensor:
            longer = t.new_empty((*t.shape[:2], size, t.shape[3]))
            longer[:, :, :past] = t
            return longer

        return _Room(copied(layer.keys), copied(layer.values))

    def holds(self, layer: Any) -> bool:
        if layer.keys is self.front_keys and layer.values is self.front_values:
            return True
        return _begins_at(layer.keys, self.keys, self.first) and _begins_at(
            layer.values, self.values, self.first
        )

    def fits(self, past: int, tokens: int) -> bool:
        """Whether `tokens` columns behind `past` are there and belong to nobody."""
        return self.filled <= self.first + past <= self.keys.shape[2] - tokens


def _begins_at(part: torch.Tensor, room: torch.Tensor, column: int) -> bool:
    return (
        part.data_ptr() == room.data_ptr() + column * room.stride(2) * room.element_size()
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
        family = _KNOWN.get(type(module).__name__)
        if family is None:
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
        sinks = getattr(module, "sinks", None)
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
            sinks=None if sinks is None else sinks.detach(),
        )
        module.moerun_attention = Held(attention, 0)
        module.moerun_family = family
        module.moerun_sinks = None if sinks is None else Original(sinks)
        mix_in(EngineAttention, module)
        count += 1
    return count
