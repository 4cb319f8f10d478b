"""Whole decoder layers of a few tokens in the engine, where a model's layers are nothing but what it has.

One call a layer instead of five and their modules' frames: 0.2 ms of Python a layer become 0.05. The parts
stay where they are and do the work as soon as anybody watches one of them (hooks), or anything is not as it
was when the engine took it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from moerun.dense import Decoder, DecoderLayer
from moerun.hf.attention_step import attention_of
from moerun.hf.cache_room import make_room
from moerun.hf.dense import is_watched, may_skip_torch, mix_in, modules_of
from moerun.hf.experts import layer_of
from moerun.hf.held import Held
from moerun.hf.norm import norm_of
from moerun.hf.router import router_of

if TYPE_CHECKING:
    from moerun.engine import Engine

# transformers' modules: residuals around attention and a block of a router and its experts.
_LAYERS = ("Qwen3MoeDecoderLayer", "OlmoeDecoderLayer", "MixtralDecoderLayer")
_BLOCKS = ("Qwen3MoeSparseMoeBlock", "OlmoeSparseMoeBlock", "MixtralSparseMoeBlock")


class EngineDecoderLayer(torch.nn.Module):
    moerun_decoder: Held[Decoder]

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **others: Any,
    ) -> torch.Tensor:
        modules: Any = self._modules
        layer = None
        if may_skip_torch(hidden_states) and _parts_of(modules) == self.moerun_decoder.value.layers[0].parts:
            layer = modules["self_attn"].cache_layer(hidden_states, attention_mask, past_key_values, others)
        if layer is None or position_embeddings is None:
            return super().forward(
                hidden_states,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_embeddings=position_embeddings,
                **others,
            )
        sequences, tokens = hidden_states.shape[:2]
        past = layer.keys.shape[2]
        cos, sin = modules["self_attn"].rotation(position_embeddings, sequences)
        decoder = self.moerun_decoder.value
        caches = decoder.caches([make_room(layer, tokens)])
        return decoder.forward(hidden_states, cos, sin, caches, past, attention_mask)


def _parts_of(modules: Any) -> tuple[Any, ...]:
    """The parts of DecoderLayer that a layer's modules are; None for one that does more or something else."""
    block = modules["mlp"]
    plain = type(block).__name__ in _BLOCKS and not is_watched(block)
    inner = block._modules if plain else {}
    return (
        norm_of(modules["input_layernorm"]),
        attention_of(modules["self_attn"]),
        norm_of(modules["post_attention_layernorm"]),
        router_of(inner.get("gate")),
        layer_of(inner.get("experts")),
    )


def decoder_layer_of(module: Any) -> DecoderLayer | None:
    """The engine's layer of a module, if calling the module would do nothing else than run it."""
    if not isinstance(module, EngineDecoderLayer) or is_watched(module):
        return None
    layer = module.moerun_decoder.value.layers[0]
    return layer if _parts_of(module._modules) == layer.parts else None


def attach_decoder_steps(model: torch.nn.Module, engine: Engine) -> int:
    """Lets the engine take whole layers whose parts it has taken before; returns how many."""
    count = 0
    for module in modules_of(model):
        if type(module).__name__ not in _LAYERS:
            continue
        parts = _parts_of(module._modules)
        if None in parts:
            continue
        decoder = Decoder([DecoderLayer(*parts)])
        mix_in(EngineDecoderLayer, module)
        module.moerun_decoder = Held(decoder, 0)
        count += 1
    return count
