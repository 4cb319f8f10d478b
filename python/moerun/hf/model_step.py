"""A decode step of a whole model in the engine: one call to the core, from embeddings to logits.

Around it, transformers builds a mask, rotation and an output, and calls a dozen modules a layer. All of that
is skipped while a model is what the engine took (unchanged.py), for a few tokens behind a prompt that a
DynamicCache holds. Everything else goes on as before: prompts, other caches, masks of more than two
dimensions, hidden states that are asked for, gradients, torch.compile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import MoeCausalLMOutputWithPast

from moerun.dense import Caches, Decoder
from moerun.hf.attention_step import MOST_TOKENS, is_plain, make_room
from moerun.hf.decoder_step import decoder_layer_of
from moerun.hf.dense import linear_of, mix_in
from moerun.hf.held import Held
from moerun.hf.norm import norm_of
from moerun.hf.rotation import RotationTable
from moerun.hf.unchanged import Unchanged

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# transformers' models that are an embedding, layers, a norm and a head, and what they return.
_MODELS: dict[str, Any] = {
    "Qwen3MoeForCausalLM": MoeCausalLMOutputWithPast,
    "OlmoeForCausalLM": MoeCausalLMOutputWithPast,
    "MixtralForCausalLM": MoeCausalLMOutputWithPast,
}
_CACHES = "moerun_caches"  # attribute of a cache
_OUTPUTS = ("output_hidden_states", "output_attentions", "output_router_logits")


class ModelStep:
    """What the engine knows of a model."""

    def __init__(self, model: Any, decoder: Decoder, output: Any) -> None:
        self.decoder = decoder
        self.output = output
        self.embedding = model.model.embed_tokens
        self.rotation = RotationTable(model.model.rotary_emb, self.embedding.weight.dtype)
        self.unchanged = Unchanged(model)

    def __call__(
        self,
        tokens: torch.Tensor,
        cache: Any,
        mask: torch.Tensor | None,
        positions: torch.Tensor | None,
        kept: int,
    ) -> torch.Tensor:
        """Logits [S, kept, V] of the last tokens of int64 [S, T].

        mask: [S, past + T], not 0 where there is a token; positions: int64 [S or 1, T].
        """
        sequences, count = tokens.shape
        past = cache.layers[0].keys.shape[2]
        if positions is None:
            positions = torch.arange(past, past + count)[None]
        cos, sin = self.rotation.rows(positions.expand(sequences, -1).reshape(-1))
        x = self.embedding(tokens)
        pairs = [make_room(layer, count) for layer in cache.layers]
        caches = self._caches(cache, pairs)
        seen = None if mask is None or bool(mask.all()) else _keys_seen(mask, past, count)
        return self.decoder.forward(x, cos, sin, caches, past, seen, kept)

    def _caches(self, cache: Any, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> Caches:
        """The same as the last time while no layer has got new memory."""
        caches: Caches | None = cache.__dict__.get(_CACHES)
        if caches is None or len(caches.pairs) != len(pairs) or any(map(_differ, caches.pairs, pairs)):
            caches = self.decoder.caches(pairs)
            setattr(cache, _CACHES, caches)
        return caches


def _differ(a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]) -> bool:
    return a[0] is not b[0] or a[1] is not b[1]


def _keys_seen(mask: torch.Tensor, past: int, tokens: int) -> torch.Tensor:
    """bool [S, 1, tokens, past + tokens]: the keys that are there, up to each token's own."""
    present = (mask != 0)[:, None, None, :]
    if tokens == 1:
        return present
    return present & (torch.arange(past + tokens) <= torch.arange(past, past + tokens)[:, None])


class EngineCausalLM(torch.nn.Module):
    moerun_step: Held[ModelStep]
    config: Any
    model: Any

    def __call__(self, *args: Any, **options: Any) -> Any:
        if args or torch.compiler.is_compiling() or not self._is_step(**options):
            return super().__call__(*args, **options)
        step = self.moerun_step.value
        kept = options.get("logits_to_keep") or options["input_ids"].shape[1]
        cache = options["past_key_values"]
        mask, positions = options.get("attention_mask"), options.get("position_ids")
        logits = step(options["input_ids"], cache, mask, positions, kept)
        return step.output(logits=logits, past_key_values=cache)

    def _is_step(
        self,
        input_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: Any = 0,
        **others: Any,
    ) -> bool:
        """Whether a call with these options is a step that the engine can do alone."""
        if input_ids is None or input_ids.ndim != 2 or not 1 <= input_ids.shape[1] <= MOST_TOKENS:
            return False
        if input_ids.dtype is not torch.int64 or input_ids.device.type != "cpu" or not len(input_ids):
            return False
        if (
            use_cache is False
            or return_dict is False
            or any(v is not None and v is not False for v in others.values())
        ):
            return False
        if type(logits_to_keep) is not int or not 0 <= logits_to_keep <= input_ids.shape[1]:
            return False
        if self.training or torch.is_grad_enabled():
            return False
        config = self.config
        if config._attn_implementation != "sdpa" or not config.return_dict:
            return False
        if any(getattr(config, name, False) for name in _OUTPUTS):
            return False
        step = self.moerun_step.value
        if "forward" in self.__dict__ or step.embedding is not self.model.embed_tokens:  # watched, or a copy
            return False
        return (
            _fits(
                past_key_values,
                len(step.decoder.layers),
                input_ids,
                attention_mask,
                step.embedding.weight.dtype,
            )
            and (position_ids is None or _are_positions(position_ids, input_ids))
            and step.unchanged.holds()
        )


def _are_positions(positions: torch.Tensor, tokens: torch.Tensor) -> bool:
    return (
        positions.ndim == 2
        and positions.dtype is torch.int64
        and positions.shape[1] == tokens.shape[1]
        and positions.shape[0] in (1, tokens.shape[0])
    )


def _fits(
    cache: Any, layers: int, tokens: torch.Tensor, mask: torch.Tensor | None, dtype: torch.dtype
) -> bool:
    """Whether a cache holds a prompt in all layers, and the mask is of all of its columns and the tokens."""
    if type(cache) is not DynamicCache or len(cache.layers) != layers:
        return False
    past = -1
    layer: Any
    for layer in cache.layers:
        if not is_plain(layer) or layer.keys.dtype is not dtype or layer.keys.shape[0] != len(tokens):
            return False
        columns = layer.keys.shape[2]
        if past not in (-1, columns):
            return False
        past = columns
    return mask is None or tuple(mask.shape) == (len(tokens), past + tokens.shape[1])


def attach_model_step(model: PreTrainedModel) -> bool:
    """Lets the engine take steps of a model whose parts it has taken before; whether it does."""
    output = _MODELS.get(type(model).__name__)
    if output is None:
        return False
    inner: Any = model.model
    layers = [layer for module in inner.layers if (layer := decoder_layer_of(module)) is not None]
    norm, head = norm_of(inner.norm), linear_of(model.lm_head)
    if norm is None or head is None or len(layers) != model.config.num_hidden_layers:
        return False
    if type(inner.embed_tokens) is not torch.nn.Embedding or inner.embed_tokens.max_norm is not None:
        return False
    step = ModelStep(model, Decoder(layers, norm, head), output)
    if not step.rotation.is_fixed:
        return False
    mix_in(EngineCausalLM, model)
    model.moerun_step = Held(step, 0)  # type: ignore[assignment]
    return True
