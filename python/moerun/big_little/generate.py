"""moerun.generate: transformers' generate() with the decoding loop of big-little experts in it.

Everything around the loop is transformers' own: generation config, logits processors, stopping criteria,
streamers, padding.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from moerun.big_little.cache import check_cache
from moerun.big_little.confidence import confidence_of
from moerun.big_little.decoder import Decide, Decoder
from moerun.big_little.options import BigLittle
from moerun.big_little.passes import Passes
from moerun.big_little.sampling import choose
from moerun.big_little.sequences import Sequences
from moerun.big_little.setup import selection_for
from moerun.big_little.speculator import Round, Speculator
from moerun.big_little.statistics import Counter, Statistics

if TYPE_CHECKING:
    from transformers import (
        DynamicCache,
        GenerationConfig,
        LogitsProcessorList,
        PreTrainedModel,
        StoppingCriteriaList,
    )

    from moerun.big_little.selection import ExpertSelection

# Options of transformers' generate() that cannot work here, and why.
_REFUSED = {
    "assistant_model": "with big_little the model's own little passes draft; leave the assistant out",
    "prompt_lookup_num_tokens": "with big_little the model's own little passes draft; leave the lookup out",
    "assistant_early_exit": "with big_little the model's own little passes draft; leave the early exit out",
    "custom_generate": "big_little is a decoding loop itself",
    "inputs_embeds": "big_little runs tokens again, so it needs input_ids",
    "synced_gpus": "the engine runs on one machine",
}
_NOT_KEPT = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


class Generation(NamedTuple):
    """What `moerun.generate` returns.

    Attributes
    ----------
    sequences
        int64 [B, tokens]: prompts and what follows, finished sequences filled up with the padding token.
    statistics
        What the run did.
    little
        Per token after the first of each sequence, whether a little pass decided it: bool [steps, B].
        Empty with `lossless`.
    rounds
        Of a lossless run: its drafts and verifications. Empty otherwise.
    """

    sequences: torch.Tensor
    statistics: Statistics
    little: list[list[bool]]
    rounds: list[Round]


def generate(
    model: PreTrainedModel,
    inputs: torch.Tensor | Mapping[str, Any],
    big_little: BigLittle | None = None,
    **options: Any,
) -> Generation:
    """Continues prompts with big-little experts (MoBiLE, arXiv 2510.12357). The prompt uses all experts.

    Parameters
    ----------
    model
        Of `moerun.hf.from_pretrained`.
    inputs
        Token ids, int64 [B, tokens], or what a tokenizer returns: a mapping with "input_ids" and
        "attention_mask". Prompts of different lengths are padded on the left.
    big_little
        None takes the defaults of `BigLittle`.
    options
        Those of transformers' `generate`: max_new_tokens, do_sample, temperature, streamer,
        stopping_criteria, past_key_values (a DynamicCache that keeps every position), ...

    Raises
    ------
    TypeError, ValueError
        Before anything runs: a model without an engine, `big_little` that does not fit the model, a cache
        that cannot be rewound, beams, an assistant model, outputs that are not kept.
    """
    big_little = BigLittle() if big_little is None else big_little
    if not isinstance(big_little, BigLittle):
        raise TypeError(f"big_little must be a moerun.BigLittle, got {type(big_little).__name__}")
    for name in sorted(_REFUSED.keys() & options.keys()):
        if options[name] is not None and options[name] is not False:
            raise ValueError(f"moerun.generate takes no {name}: {_REFUSED[name]}")
    config = getattr(model, "config", None)
    check_cache(
        config.get_text_config() if config is not None else None,
        options.get("past_key_values"),
        options.get("cache_implementation"),
        options.get("use_cache") is not False,
    )
    selection = selection_for(model, big_little)
    given = dict(inputs) if isinstance(inputs, Mapping) else {"inputs": inputs}
    loop = _Loop(selection, big_little, options.get("streamer"), options.get("past_key_values"))
    return model.generate(**given, **_with_stop_strings(options), custom_generate=loop)  # type: ignore[operator]


class _Loop:
    """The decoding loop, as transformers calls it once everything is prepared.

    transformers gives the streamer the prompt, but does not hand it on to a loop that is not its own. A cache
    that it made itself may lack positions, so only the caller's is used.
    """

    def __init__(
        self, selection: ExpertSelection, options: BigLittle, streamer: Any, cache: DynamicCache | None
    ) -> None:
        self._selection = selection
        self._options = options
        self._streamer = streamer
        self._cache = cache

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Generation:
        _check_config(generation_config)
        begin, bytes_before = time.perf_counter(), _bytes_read(model)
        padding = generation_config._pad_token_tensor
        sequences = Sequences(
            input_ids,
            generation_config.max_length,
            0 if padding is None else int(padding),
            logits_processor,
            stopping_criteria,
            self._streamer,
        )
        counter = Counter()
        little: list[list[bool]] = []
        rounds: list[Round] = []
        with self._selection as selection:
            mask = model_kwargs.get("attention_mask")
            mask = torch.ones_like(input_ids) if mask is None else mask
            passes = Passes(model, selection, mask, counter, self._cache)
            do_sample = bool(generation_config.do_sample)
            _append(sequences, choose(sequences.scores(passes.prefill(input_ids)), do_sample))
            if self._options.lossless:
                rounds = self._speculate(passes, sequences, do_sample)
            else:
                little = self._step(passes, sequences, do_sample)
        sequences.end()
        counter.tokens["new"] = sequences.new_tokens
        wall_s, bytes_read = time.perf_counter() - begin, _bytes_read(model) - bytes_before
        statistics = counter.statistics(wall_s, len(input_ids), bytes_read)
        return Generation(sequences.ids, statistics, little, rounds)

    def _step(self, passes: Passes, sequences: Sequences, do_sample: bool) -> list[list[bool]]:
        decoder = Decoder(passes, decide(self._options), self._options.refresh)
        little = []
        while bool(sequences.unfinished.any()):
            step = decoder.step(sequences.newest, sequences.unfinished)
            little.append(step.little.tolist())
            _append(sequences, choose(sequences.scores(step.logits), do_sample))
        return little

    def _speculate(self, passes: Passes, sequences: Sequences, do_sample: bool) -> list[Round]:
        speculator = Speculator(passes, sequences, decide(self._options), self._options.draft, do_sample)
        while bool(sequences.unfinished.any()):
            speculator.round()
            sequences.show()
        return speculator.rounds


def _with_stop_strings(options: dict[str, Any]) -> dict[str, Any]:
    """`options` with stop_strings as a criterion: transformers drops their tokenizer before our loop."""
    from transformers import StoppingCriteriaList, StopStringCriteria

    strings, tokenizer = options.get("stop_strings"), options.get("tokenizer")
    if strings is None or tokenizer is None:
        return options
    criteria = StoppingCriteriaList(options.get("stopping_criteria") or ())
    criteria.append(StopStringCriteria(tokenizer, strings))
    others = {name: value for name, value in options.items() if name not in ("stop_strings", "tokenizer")}
    return {**others, "stopping_criteria": criteria}


def decide(options: BigLittle) -> Decide:
    """Whether the logits of a little pass are sure enough: bool [B] of [B, V]."""
    confidence = confidence_of(options.measure)
    return lambda logits: confidence(logits) >= options.threshold


def _append(sequences: Sequences, tokens: torch.Tensor) -> None:
    """Adds a token [B] to every unfinished sequence, and shows it."""
    sequences.append([[token] for token in tokens.tolist()])
    sequences.show()


def _check_config(config: GenerationConfig) -> None:
    """Checks what transformers has merged of options, a config and the checkpoint's defaults."""
    if config.num_beams not in (None, 1):
        raise ValueError(
            f"big_little decodes greedily or by sampling, not with num_beams={config.num_beams}; leave it out"
        )
    if config.use_cache is False or config.cache_implementation not in (None, "dynamic"):
        check_cache(None, None, config.cache_implementation, config.use_cache)
    kept = [name for name in _NOT_KEPT if getattr(config, name, False)]
    if kept:
        raise ValueError(f"moerun.generate keeps no {kept[0]}: a token may come from either of two passes")


def _bytes_read(model: PreTrainedModel) -> int:
    engine: Any = model.moerun_engine
    return sum(layer["weight_bytes"] for layer in engine.stats()["layers"])
