"""Decode steps in layers that see a window only, and gpt-oss's: sinks, and masks that are added."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

import moerun.hf
from moerun.hf.cache_room import LEAST_ROOM

WINDOW = 6
PROMPT = 9
CLOSE = {"rtol": 0, "atol": 1e-4}


class Pair(NamedTuple):
    ours: PreTrainedModel
    theirs: PreTrainedModel


@pytest.fixture(params=["mixtral", "gpt_oss"])
def pair(request: pytest.FixtureRequest, random_checkpoint: Callable[..., Path]) -> Pair:
    folder = random_checkpoint(request.param, sliding_window=WINDOW)
    return Pair(
        moerun.hf.from_pretrained(folder, cpu_threads=1),
        AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager"),
    )


@pytest.fixture
def gpt_oss(random_checkpoint: Callable[..., Path]) -> PreTrainedModel:
    return moerun.hf.from_pretrained(random_checkpoint("gpt_oss", sliding_window=WINDOW), cpu_threads=1)


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def tokens(rows: int, count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 128, (rows, count), generator=torch.Generator().manual_seed(seed))


def last_logits(model: PreTrainedModel, ids: torch.Tensor, count: int = 1) -> torch.Tensor:
    return model(ids, use_cache=False).logits[:, -count:]


def assert_same_cache(ours: DynamicCache, theirs: DynamicCache) -> None:
    for layer, other in zip(ours.layers, theirs.layers, strict=True):
        torch.testing.assert_close(layer.keys, other.keys, **CLOSE)
        torch.testing.assert_close(layer.values, other.values, **CLOSE)
        assert layer.get_seq_length() == other.get_seq_length()
        assert layer.get_mask_sizes(1) == other.get_mask_sizes(1)


@pytest.mark.parametrize("prompt", [2, WINDOW - 1, WINDOW, PROMPT])
def test_every_step_goes_through_the_engine(pair: Pair, steps: list[tuple[int, ...]], prompt: int) -> None:
    options: dict[str, Any] = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    texts = [model.generate(tokens(1, prompt), **options) for model in pair]
    assert steps == [(1, 1)] * (11 * pair.ours.config.num_hidden_layers)
    assert torch.equal(*texts)


def test_windows_move_through_their_room(pair: Pair, steps: list[tuple[int, ...]]) -> None:
    """Several tokens at a time, over more columns than there is room for."""
    prompt, ids = tokens(2, PROMPT), tokens(2, LEAST_ROOM + 40, seed=3)
    caches = [model(prompt, use_cache=True).past_key_values for model in pair]
    rooms = set()
    for at in range(0, ids.shape[1], 8):
        part = ids[:, at : at + 8]
        logits = [m(part, past_key_values=c).logits for m, c in zip(pair, caches, strict=True)]
        torch.testing.assert_close(*logits, **CLOSE)
        rooms.add(caches[0].layers[0].keys.untyped_storage().data_ptr())
    assert set(steps) == {(2, 8)}
    assert len(rooms) == 2
    assert_same_cache(*caches)


def test_padded_batches(pair: Pair, steps: list[tuple[int, ...]]) -> None:
    ids, mask = tokens(3, PROMPT), torch.ones(3, PROMPT, dtype=torch.int64)
    for row, padding in enumerate((0, 4, 8)):
        ids[row, :padding], mask[row, :padding] = 2, 0
    options: dict[str, Any] = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False}
    texts = [model.generate(ids, attention_mask=mask, pad_token_id=2, **options) for model in pair]
    assert steps
    assert torch.equal(*texts)


def test_copied_and_selected_windows(pair: Pair, steps: list[tuple[int, ...]]) -> None:
    ids, one = tokens(3, PROMPT), tokens(3, 1, seed=1)
    caches = [model(ids, use_cache=True).past_key_values for model in pair]
    for model, cache in zip(pair, caches, strict=True):
        model(one, past_key_values=cache)
    copies = copy.deepcopy(caches)
    for cache in caches:
        cache.batch_select_indices(torch.tensor([2, 0]))
    more, other = tokens(2, 2, seed=5), tokens(3, 2, seed=6)
    for use, of in ((more, caches), (other, copies)):
        logits = [m(use, past_key_values=c).logits for m, c in zip(pair, of, strict=True)]
        torch.testing.assert_close(*logits, **CLOSE)
        assert_same_cache(*of)
    assert set(steps) == {(3, 1), (2, 2), (3, 2)}


def test_cropping_before_the_window_is_full(pair: Pair, steps: list[tuple[int, ...]]) -> None:
    caches = [model(tokens(1, 2), use_cache=True).past_key_values for model in pair]
    for count, crop in ((2, 1), (1, 2), (8, 0)):
        more = tokens(1, count, seed=count)
        logits = [m(more, past_key_values=c).logits for m, c in zip(pair, caches, strict=True)]
        torch.testing.assert_close(*logits, **CLOSE)
        if crop:
            for cache in caches:
                cache.crop(-crop)
    assert set(steps) == {(1, 2), (1, 1), (1, 8)}
    assert_same_cache(*caches)


def test_windows_that_keep_what_left_them_are_torchs(pair: Pair, steps: list[tuple[int, ...]]) -> None:
    """Assisted generation takes tokens back, also those that made others leave the window."""
    caches = [model(tokens(1, PROMPT), use_cache=True).past_key_values for model in pair]
    for cache in caches:
        for layer in cache.layers:
            if layer.is_sliding:
                layer.activate_past_recording()
    del steps[:]
    for model, cache in zip(pair, caches, strict=True):
        model(tokens(1, 3, seed=1), past_key_values=cache)
        cache.crop(-2)
    sliding = sum(layer.is_sliding for layer in caches[0].layers)
    assert len(steps) == len(caches[0].layers) - sliding
    assert sliding
    assert_same_cache(*caches)


def test_a_cache_of_all_keys(pair: Pair, steps: list[tuple[int, ...]]) -> None:
    """The mask says what the window is."""
    ids, more = tokens(2, PROMPT), tokens(2, 3, seed=1)
    cache = DynamicCache()
    pair.ours(ids, past_key_values=cache)
    got = pair.ours(more, past_key_values=cache).logits
    assert set(steps) == {(2, 3)}
    torch.testing.assert_close(got, last_logits(pair.theirs, torch.cat((ids, more), 1), 3), **CLOSE)


def test_attention_weights_are_torchs(gpt_oss: PreTrainedModel, steps: list[tuple[int, ...]]) -> None:
    cache = gpt_oss(tokens(1, 3), use_cache=True).past_key_values
    attentions = gpt_oss(tokens(1, 1), past_key_values=cache, output_attentions=True).attentions
    assert steps == []
    assert [a.shape for a in attentions] == [(1, 4, 1, 4)] * 2


def test_a_watched_module_gives_weights(gpt_oss: PreTrainedModel, steps: list[tuple[int, ...]]) -> None:
    seen: list[Any] = []
    for layer in gpt_oss.model.layers:
        layer.self_attn.register_forward_hook(lambda module, inputs, output: seen.append(output[1]))
    cache = gpt_oss(tokens(1, 3), use_cache=True).past_key_values
    gpt_oss(tokens(1, 1), past_key_values=cache)
    assert steps == []
    assert all(weights is not None for weights in seen)


def test_written_sinks_count(gpt_oss: PreTrainedModel, steps: list[tuple[int, ...]]) -> None:
    ids, one = tokens(1, 3), tokens(1, 1, seed=1)
    for layer in gpt_oss.model.layers:
        layer.self_attn.sinks.add_(1.0)
    cache = gpt_oss(ids, use_cache=True).past_key_values
    got = gpt_oss(one, past_key_values=cache).logits
    assert steps == []
    torch.testing.assert_close(got, last_logits(gpt_oss, torch.cat((ids, one), 1)), **CLOSE)


def test_masks_of_the_caller(pair: Pair, steps: list[tuple[int, ...]]) -> None:
    """Of four dimensions: what it says of a key is added to the scores."""
    ids, one = tokens(1, 3), tokens(1, 1, seed=1)
    mask: Any = torch.tensor([0.5, -1e4, -0.3, 0.0]).view(1, 1, 1, 4)
    if "gpt_oss" in pair.ours.config.model_type:
        mask = dict.fromkeys(("full_attention", "sliding_attention"), mask)
    logits = []
    for model in pair:
        cache = model(ids, use_cache=True).past_key_values
        logits.append(model(one, past_key_values=cache, attention_mask=mask).logits)
    assert steps == [(1, 1)] * 2
    torch.testing.assert_close(*logits, **CLOSE)
