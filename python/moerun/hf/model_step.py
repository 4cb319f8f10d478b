"""A decode step of a whole model in the engine: one call to the core, from embeddings to logits.

Around it, transformers builds a mask, rotation and an output, and calls a dozen modules a layer. All of that
is skipped while a model is what the engine took (unchanged.py), for a few tokens behind a prompt that a
DynamicCache holds. Everything else goes on as before: prompts, other caches, masks of more than two
dimensions, hidden states that are asked for, gradients, torch.compile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast

from moerun.dense import Caches, Decoder, TokenRun
from moerun.hf.attention_step import MOST_TOKENS, is_plain
from moerun.hf.cache_room import give_back_room, make_room
from moerun.hf.decode_loop import Choice, Stop, decode, may_decode
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


class Call(NamedTuple):
    """What a step is called with: tokens int64 [S, T] behind a cache; how many of the last logits are wanted.

    mask: [S, past + T], not 0 where there is a token; positions: int64 [S or 1, T].
    """

    tokens: torch.Tensor
    cache: Any
    mask: torch.Tensor | None
    positions: torch.Tensor | None
    kept: int


class ModelStep:
    """What the engine knows of a model."""

    def __init__(self, model: Any, decoder: Decoder, output: Any) -> None:
        self.decoder = decoder
        self.output = output
        self.embedding = model.model.embed_tokens
        self.rotation = RotationTable(model.model.rotary_emb, self.embedding.weight.dtype)
        self._config = model.config
        self._unchanged = Unchanged(model)

    def takes(self, call: Call) -> bool:
        """Whether it can do for a call what the model's modules would."""
        tokens, cache, mask, positions, kept = call
        if tokens.ndim != 2 or tokens.dtype is not torch.int64 or tokens.device.type != "cpu":
            return False
        sequences, count = tokens.shape
        if not sequences or not 1 <= count <= MOST_TOKENS or not 1 <= kept <= count:
            return False
        past, window = self._past(cache, sequences), getattr(self._config, "sliding_window", None)
        if past is None or (window is not None and past + count > window):  # some keys are not to be seen
            return False
        if mask is not None and tuple(mask.shape) != (sequences, past + count):
            return False
        if positions is not None and (
            positions.dtype is not torch.int64
            or tuple(positions.shape) not in ((1, count), (sequences, count))
        ):
            return False
        return self._unchanged.holds()

    def __call__(self, call: Call) -> torch.Tensor:
        """Logits [S, kept, V] of a call that it takes."""
        tokens, cache, mask, positions, kept = call
        sequences, count = tokens.shape
        past = cache.layers[0].keys.shape[2]
        if positions is None:
            positions = torch.arange(past, past + count)[None]
        cos, sin = self.rotation.rows(positions.expand(sequences, -1).reshape(-1))
        caches = self._longer(cache, count)
        seen = None if mask is None or bool(mask.all()) else _keys_seen(mask, past, count)
        return self.decoder.forward(self.embedding(tokens), cos, sin, caches, past, seen, kept)

    def may_run(self, cache: Any, past: int, length: int) -> bool:
        """Whether run() can take a cache with `past` keys once a prompt is in it, up to so many tokens."""
        window = getattr(self._config, "sliding_window", None)
        if type(cache) is not DynamicCache or (window is not None and length > window):
            return False
        if any(type(layer) is not DynamicLayer for layer in cache.layers):
            return False
        fits = past == 0 or self._past(cache, 1) == past
        return fits and self.embedding.weight.is_contiguous() and self._unchanged.holds()

    @contextlib.contextmanager
    def run(self, cache: Any, tokens: int) -> Iterator[TokenRun]:
        """For so many tokens at most. The cache seems to hold them all meanwhile, then those it has."""
        past = cache.layers[0].keys.shape[2]
        cos, sin = self.rotation.first(past + tokens)
        embedding, caches = self.embedding.weight.detach(), self._longer(cache, tokens)
        run = TokenRun(self.decoder, embedding, cos, sin, caches, past)
        try:
            yield run
        finally:
            for layer in cache.layers:
                give_back_room(layer, past + tokens - run.length)

    def _past(self, cache: Any, sequences: int) -> int | None:
        """How many keys of so many sequences each layer of a cache holds, if one number says it of all."""
        if type(cache) is not DynamicCache or len(cache.layers) != len(self.decoder.layers):
            return None
        dtype, past = self.embedding.weight.dtype, None
        layer: Any
        for layer in cache.layers:
            if not is_plain(layer) or layer.keys.dtype is not dtype or layer.keys.shape[0] != sequences:
                return None
            if past not in (None, layer.keys.shape[2]):
                return None
            past = layer.keys.shape[2]
        return past

    def _longer(self, cache: Any, tokens: int) -> Caches:
        """All layers' keys and values with room for so many more."""
        pairs = [make_room(layer, tokens) for layer in cache.layers]
        known: Caches | None = cache.__dict__.get(_CACHES)
        if known is None or len(known.pairs) != len(pairs) or any(map(_differ, known.pairs, pairs)):
            known = self.decoder.caches(pairs)
            setattr(cache, _CACHES, known)
        return known


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
        call = None if args or torch.compiler.is_compiling() else _call_of(**options)
        step = self.moerun_step.value
        if call is None or not self._is_plain(step) or not step.takes(call):
            return super().__call__(*args, **options)
        return step.output(logits=step(call), past_key_values=call.cache)

    def _sample(
        self,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        synced_gpus: bool = False,
        streamer: Any = None,
        **options: Any,
    ) -> Any:
        """transformers' loop of greedy decoding and sampling."""
        step, stop = self.moerun_step.value, Stop(stopping_criteria)
        plain = not synced_gpus and self._is_plain(step)
        if not plain or not may_decode(step, input_ids, stop, generation_config, options):
            return super()._sample(  # type: ignore[misc]
                input_ids,
                logits_processor=logits_processor,
                stopping_criteria=stopping_criteria,
                generation_config=generation_config,
                synced_gpus=synced_gpus,
                streamer=streamer,
                **options,
            )
        choose = Choice(logits_processor, bool(generation_config.do_sample))
        show = None if streamer is None else streamer.put
        ids = decode(self, step, input_ids, choose, stop, options["past_key_values"], show)
        if streamer is not None:
            streamer.end()
        return ids

    def _is_plain(self, step: ModelStep) -> bool:
        """Whether nobody wants more of this very model than logits."""
        config = self.config
        return (
            not self.training
            and not torch.is_grad_enabled()
            and step.embedding is self.model.embed_tokens  # or it is a copy
            and "forward" not in self.__dict__
            and config._attn_implementation == "sdpa"
            and config.return_dict
            and not any(getattr(config, name, False) for name in _OUTPUTS)
        )


def _call_of(
    input_ids: torch.Tensor | None = None,
    past_key_values: Any = None,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    use_cache: bool | None = None,
    return_dict: bool | None = None,
    logits_to_keep: Any = 0,
    **others: Any,
) -> Call | None:
    """What a model is called with, if it may be a step: other options of forward must say no."""
    if input_ids is None or past_key_values is None or type(logits_to_keep) is not int:
        return None
    if (
        use_cache is False
        or return_dict is False
        or any(v is not None and v is not False for v in others.values())
    ):
        return None
    kept = logits_to_keep or input_ids.shape[-1]
    return Call(input_ids, past_key_values, attention_mask, position_ids, kept)


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
