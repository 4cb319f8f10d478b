"""Bad input of a big-little run: the whole message, and that it comes before any expert has worked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import DynamicCache, GptOssConfig, PreTrainedModel, StaticCache

import moerun
from random_prompts import padded

PROMPT = padded([6], seed=1)
RANGE = "it is a confidence and lies within 0 (every token is little) and 1 (nearly none is)"
ROUNDS = (
    "it is a number of tokens: at least 1, or 0 for the default (no refresh; with lossless, drafts of at "
    "most 8 tokens)"
)
SMALL_CACHE = StaticCache(GptOssConfig(num_hidden_layers=2), max_cache_len=8)

# options of BigLittle, options of generate, and what is said
CASES = {
    "threshold below 0": ({"threshold": -0.1}, {}, f"threshold is -0.1; {RANGE}"),
    "threshold above 1": ({"threshold": 1.5}, {}, f"threshold is 1.5; {RANGE}"),
    "no expert": (
        {"little_k": 0},
        {},
        "little_k is 0; a little pass uses at least one expert per token, so give a whole number of at least "
        "1, or one per layer",
    ),
    "more experts than there are": (
        {"little_k": 3},
        {},
        "little_k is 3, but this model uses 2 experts per token; give at most 2",
    ),
    "a cache by name that cannot be rewound": (
        {},
        {"cache_implementation": "static"},
        "big_little cannot rewind the cache 'static'; leave cache_implementation out",
    ),
    "a cache that cannot be rewound": (
        {},
        {"past_key_values": SMALL_CACHE},
        "big_little cannot rewind a past_key_values of the type StaticCache; pass a DynamicCache() made "
        "without a config, or leave it out",
    ),
    "an assistant": (
        {},
        {"assistant_model": object()},
        "moerun.generate takes no assistant_model: with big_little the model's own little passes draft; "
        "leave the assistant out",
    ),
    "R below 1": ({"refresh": -1}, {}, f"refresh is -1; {ROUNDS}"),
    "R of a lossless run below 1": ({"refresh": -3, "lossless": True}, {}, f"refresh is -3; {ROUNDS}"),
}


def message_of(model: PreTrainedModel, big_little: dict, options: dict) -> str:
    """What is said, in which no expert may have worked."""
    before = [layer["batches"] for layer in model.moerun_engine.stats()["layers"]]
    with pytest.raises(ValueError, match=r"\w") as caught:
        moerun.generate(model, PROMPT, moerun.BigLittle(**big_little), max_new_tokens=4, **options)
    assert [layer["batches"] for layer in model.moerun_engine.stats()["layers"]] == before
    return str(caught.value)


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_before_generation_starts(pair_of: Callable, name: str) -> None:
    big_little, options, message = CASES[name]
    assert message_of(pair_of("qwen3_moe").ours, big_little, options) == message


def test_a_model_with_one_expert_per_token_is_refused_with_the_reason(pair_of: Callable) -> None:
    model = pair_of("qwen3_moe", num_experts_per_tok=1).ours
    assert message_of(model, {}, {}) == (
        "this model uses 1 expert per token (num_experts_per_tok): there is no smaller number for a little "
        "pass; generate without big_little"
    )


def test_a_cache_of_sliding_windows_is_refused_by_the_layers_name(pair_of: Callable) -> None:
    model = pair_of("gpt_oss").ours
    assert message_of(model, {}, {"past_key_values": DynamicCache(config=model.config)}) == (
        "big_little cannot rewind a past_key_values of the type DynamicSlidingWindowLayer; pass a "
        "DynamicCache() made without a config, or leave it out"
    )
