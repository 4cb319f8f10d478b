"""Whole decoder layers of a few tokens in the engine, where a model's layers are nothing but what it has.

One call a layer instead of five and their modules' frames: 0.2 ms of Python a layer become 0.05. The parts
stay where they are and do the work as soon as anybody watches one of them (hooks), or anything is not as it
was when the engine took it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from moerun.dense import DecoderLayer
from moerun.hf.attention_step import EngineAttention, make_room, rotation_rows
from moerun.hf.dense import mix_in, modules_of
from moerun.hf.held import Held
from moerun.hf.norm import norm_of
from moerun.hf.router import EngineRouter

if TYPE_CHECKING:
    from moerun.engine import Engine

# transformers' modules: residuals around attention and a block of a router and its experts.
_LAYERS = ("Qwen3MoeDecoderLayer", "OlmoeDecoderLayer", "MixtralDecoderLayer")
_BLOCKS = ("Qwen3MoeSparseMoeBlock", "OlmoeSparseMoeBlock", "MixtralSparseMoeBlock")


class EngineDecoderLayer(torch.nn.Module):
    moerun_decoder: Held[DecoderLayer]

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
        attention: EngineAttention = modules["self_attn"]
        layer = None
        if position_embeddings is not None and not _watched(modules):
            layer = attention.cache_layer(hidden_states, attention_mask, past_key_values, others)
        if layer is None:
            return super().forward(
                hidden_states,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_embeddings=position_embeddings,
                **others,
            )
        assert position_embeddings is not None
        sequences, tokens = hidden_states.shape[:2]
        past = layer.keys.shape[2]
        cos, sin = rotation_rows(position_embeddings, sequences)
        keys, values = make_room(layer, tokens)
        return self.moerun_decoder.value.forward(hidden_states, cos, sin, keys, values, past, attention_mask)


def _watched(modules: Any) -> bool:
    """Whether a part of a layer has hooks, or other weights than the engine's copies."""
    block = modules["mlp"]
    gate, experts = block._modules["gate"], block._modules["experts"]
    for module in (modules["self_attn"], block, gate, experts):
        if module._forward_hooks or module._forward_pre_hooks:
            return True
    norms = modules["input_layernorm"], modules["post_attention_layernorm"]
    return None in map(norm_of, norms) or not gate.is_unchanged()


def attach_decoder_steps(model: torch.nn.Module, engine: Engine) -> int:
    """Lets the engine take whole layers whose parts it has taken before; returns how many."""
    count = 0
    for module in modules_of(model):
        if type(module).__name__ not in _LAYERS or type(module.mlp).__name__ not in _BLOCKS:
            continue
        attention, gate, experts = module.self_attn, module.mlp.gate, module.mlp.experts
        norms = module.input_layernorm, module.post_attention_layernorm
        taken = isinstance(attention, EngineAttention) and isinstance(gate, EngineRouter)
        if not taken or None in map(norm_of, norms):
            continue
        decoder = DecoderLayer(
            norms[0].moerun_norm.value,
            attention.moerun_attention.value,
            norms[1].moerun_norm.value,
            gate.moerun_router.value,
            experts.moerun_layer.value,
        )
        mix_in(EngineDecoderLayer, module)
        module.moerun_decoder = Held(decoder, 0)
        count += 1
    return count
