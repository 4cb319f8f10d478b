"""moerun.generate: what it takes and refuses, what it streams, counts and tells the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    StoppingCriteria,
    TextIteratorStreamer,
)
from transformers.generation.streamers import BaseStreamer

import moerun
from moerun.engine import Layer
from random_prompts import padded

GREEDY = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None}
PROMPT = padded([6], seed=1)


@pytest.fixture
def model(pair_of: Callable) -> PreTrainedModel:
    return pair_of("qwen3_moe").ours


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"assistant_model": object()}, "no assistant_model: .*little passes draft"),
        ({"prompt_lookup_num_tokens": 3}, "no prompt_lookup_num_tokens"),
        ({"inputs_embeds": torch.zeros(1, 2, 64)}, "needs input_ids"),
        ({"custom_generate": "someone/something"}, "no custom_generate"),
        ({"num_beams": 2}, "not with num_beams=2"),
        ({"generation_config": GenerationConfig(num_beams=3, max_length=9)}, "not with num_beams=3"),
        ({"cache_implementation": "static"}, "cannot rewind the cache 'static'"),
        ({"use_cache": False}, "needs the key-value cache"),
        ({"generation_config": GenerationConfig(use_cache=False, max_length=9)}, "needs the key-value cache"),
        ({"return_dict_in_generate": True, "output_scores": True}, "keeps no output_scores"),
    ],
)
@pytest.mark.parametrize("big_little", [moerun.BigLittle(), moerun.BigLittle(lossless=True)])
def test_what_cannot_work_is_refused_before_anything_runs(
    model: PreTrainedModel, big_little: moerun.BigLittle, options: dict, message: str
) -> None:
    before = model.moerun_engine.stats()["layers"][0]["batches"]
    with pytest.raises(ValueError, match=message):
        moerun.generate(model, PROMPT["input_ids"], big_little, **options)
    assert model.moerun_engine.stats()["layers"][0]["batches"] == before


def test_options_that_do_not_fit_the_model(model: PreTrainedModel, pair_of: Callable) -> None:
    with pytest.raises(ValueError, match="little_k is 3, but this model uses 2"):
        moerun.generate(model, PROMPT, moerun.BigLittle(little_k=3))
    single = pair_of("qwen3_moe", num_experts_per_tok=1).ours
    with pytest.raises(ValueError, match="1 expert per token"):
        moerun.generate(single, PROMPT)
    with pytest.raises(TypeError, match=r"moerun\.BigLittle, got float"):
        moerun.generate(model, PROMPT, 0.7)


def test_a_model_without_an_engine(pair_of: Callable) -> None:
    eager: AutoModelForCausalLM = pair_of("qwen3_moe").eager
    with pytest.raises(TypeError, match=r"moerun\.hf\.from_pretrained"):
        moerun.generate(eager, PROMPT)


def test_sliding_windows_keep_every_position(pair_of: Callable) -> None:
    model = pair_of("gpt_oss").ours
    with pytest.raises(ValueError, match="DynamicSlidingWindowLayer"):
        moerun.generate(model, PROMPT, past_key_values=DynamicCache(config=model.config))


def test_ids_or_a_mapping_with_a_mask(model: PreTrainedModel) -> None:
    big_little = moerun.BigLittle(threshold=0.03)
    of_ids = moerun.generate(model, PROMPT["input_ids"], big_little, **GREEDY).sequences
    of_mapping = moerun.generate(model, PROMPT, big_little, **GREEDY).sequences
    assert torch.equal(of_ids, of_mapping)
    assert of_ids.shape == (1, 6 + 8)


@pytest.mark.parametrize("lossless", [False, True])
def test_a_text_goes_on_from_its_cache(model: PreTrainedModel, lossless: bool) -> None:
    big_little = moerun.BigLittle(threshold=1.0, lossless=lossless)
    cache = DynamicCache()
    first = moerun.generate(model, PROMPT, big_little, **GREEDY, past_key_values=cache).sequences
    assert cache.get_seq_length() == first.shape[1] - 1
    second = moerun.generate(model, first, big_little, **GREEDY, past_key_values=cache).sequences
    whole = model.generate(**PROMPT, **{**GREEDY, "max_new_tokens": 16})
    assert torch.equal(second, whole)


class Collector(BaseStreamer):
    def __init__(self) -> None:
        self.columns: list[list[int]] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        assert not self.ended
        self.columns.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize("lossless", [False, True])
def test_the_streamer_gets_every_column_once_and_in_order(model: PreTrainedModel, lossless: bool) -> None:
    inputs, streamer = padded([5, 3, 6]), Collector()
    options = {**GREEDY, "eos_token_id": list(range(3, 20)), "pad_token_id": 2, "max_new_tokens": 24}
    big_little = moerun.BigLittle(threshold=0.0, lossless=lossless)
    found = moerun.generate(model, inputs, big_little, **options, streamer=streamer).sequences
    assert streamer.ended
    prompt, *columns = streamer.columns
    assert prompt == inputs["input_ids"].flatten().tolist()
    assert columns == found[:, 6:].T.tolist()
    assert 2 in columns[-1]  # one was finished before the others


def test_streaming_text_from_another_thread(demo: PreTrainedModel, demo_tokenizer) -> None:
    inputs = demo_tokenizer("def read(path):\n", return_tensors="pt")
    streamer = TextIteratorStreamer(demo_tokenizer, skip_prompt=True, timeout=60)
    big_little = moerun.BigLittle(threshold=0.5, refresh=4)
    arguments = (demo, inputs, big_little)
    options = {"do_sample": False, "max_new_tokens": 20}
    thread = Thread(target=moerun.generate, args=arguments, kwargs={**options, "streamer": streamer})
    thread.start()
    text = "".join(streamer)
    thread.join()
    whole = moerun.generate(*arguments, **options).sequences[0, inputs["input_ids"].shape[1] :]
    assert text == demo_tokenizer.decode(whole, skip_special_tokens=True)


def test_stop_strings(demo: PreTrainedModel, demo_tokenizer) -> None:
    inputs = demo_tokenizer("import os\n", return_tensors="pt")
    options = {
        "do_sample": False,
        "max_new_tokens": 40,
        "stop_strings": ["import"],
        "tokenizer": demo_tokenizer,
    }
    found = moerun.generate(demo, inputs, moerun.BigLittle(lossless=True), **options)
    assert torch.equal(found.sequences, demo.generate(**inputs, **options))
    assert found.statistics.new_tokens < 40


class AfterToken(StoppingCriteria):
    """Stops a sequence at a length of its own."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = torch.tensor(lengths)

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        return input_ids.shape[1] >= self.lengths


@pytest.mark.parametrize("lossless", [False, True])
def test_stopping_criteria_may_know_rows_by_number(model: PreTrainedModel, lossless: bool) -> None:
    inputs, lengths = padded([4, 4, 4]), [7, 12, 9]
    options = {**GREEDY, "pad_token_id": 2, "max_new_tokens": 30}
    big_little = moerun.BigLittle(threshold=1.0 if not lossless else 0.0, lossless=lossless)
    found = moerun.generate(model, inputs, big_little, **options, stopping_criteria=[AfterToken(lengths)])
    usual = model.generate(**inputs, **{**options, "max_new_tokens": 8})
    assert found.sequences.shape == (3, 12)
    for row, length in enumerate(lengths):
        assert torch.equal(found.sequences[row, :length], usual[row, :length])
        assert (found.sequences[row, length:] == 2).all()
    assert found.statistics.new_tokens == sum(lengths) - 3 * 4


def test_statistics_add_up(model: PreTrainedModel) -> None:
    before = sum(layer["weight_bytes"] for layer in model.moerun_engine.stats()["layers"])
    found = moerun.generate(model, PROMPT, moerun.BigLittle(threshold=0.035), **GREEDY)
    after = sum(layer["weight_bytes"] for layer in model.moerun_engine.stats()["layers"])
    statistics, layers = found.statistics, 2
    assert statistics.new_tokens == 8
    assert statistics.little_tokens + statistics.fallbacks == 7
    assert statistics.little_passes == 7
    assert statistics.full_passes == statistics.fallbacks
    assert statistics.experts_read == layers * (7 * 1 + statistics.fallbacks * 2)
    one_expert = 3 * 64 * 48 * 4
    assert statistics.bytes_read == after - before
    assert statistics.bytes_read == one_expert * (statistics.experts_read + statistics.prefill_experts_read)
    assert statistics.little_share == statistics.little_tokens / 8
    assert statistics.prefill_s > 0
    assert statistics.decode_s > 0


def test_finished_sequences_read_no_experts(model: PreTrainedModel) -> None:
    options = {**GREEDY, "pad_token_id": 2, "max_new_tokens": 12}
    alone = moerun.generate(model, padded([4]), moerun.BigLittle(threshold=0.0), **options).statistics
    inputs = {name: rows.repeat(2, 1) for name, rows in padded([4]).items()}
    for threshold, lossless in ((0.0, False), (1.0, False), (0.0, True)):
        found = moerun.generate(
            model,
            inputs,
            moerun.BigLittle(threshold=threshold, lossless=lossless),
            **options,
            stopping_criteria=[AfterToken([5, 100])],  # the second sequence does the work
        )
        single = moerun.generate(
            model, padded([4]), moerun.BigLittle(threshold=threshold, lossless=lossless), **options
        )
        assert found.statistics.experts_read == single.statistics.experts_read
    assert alone.experts_read == 2 * 11


def test_saved_time_needs_a_pass_to_compare_with(model: PreTrainedModel) -> None:
    always = moerun.generate(model, PROMPT, moerun.BigLittle(threshold=1.0), **GREEDY).statistics
    assert always.saved_s is not None
    assert always.saved_s < 0  # every token was run twice
    never = moerun.generate(model, PROMPT, moerun.BigLittle(threshold=0.0), **GREEDY).statistics
    assert never.saved_s is None


def test_a_fallback_hands_every_layers_choice_to_the_prefetcher(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple] = []

    def hint(layer: Layer, ids: torch.Tensor, scores: torch.Tensor) -> None:
        events.append(("hint", layer, ids.clone(), scores.clone()))

    @contextmanager
    def pinned(layer: Layer, ids: torch.Tensor) -> Iterator[None]:
        events.append(("pin", layer, ids.clone()))
        yield
        events.append(("unpin", layer))

    def forward(layer: Layer, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        events.append(("run", layer, ids.clone()))
        return usual(layer, x, ids, weights)

    usual = Layer.forward
    for name, function in (("hint", hint), ("pinned", pinned), ("forward", forward)):
        monkeypatch.setattr(Layer, name, function)
    layers = model.moerun_engine.layers
    moerun.generate(model, padded([4, 5]), moerun.BigLittle(threshold=1.0), **{**GREEDY, "max_new_tokens": 2})

    kinds = [event[0] for event in events]
    count = len(layers)
    assert kinds == ["run"] * 2 * count + ["pin", "hint"] * count + ["run"] * count + ["unpin"] * count
    little, told, full = events[count : 2 * count], events[2 * count : 4 * count : 2], events[4 * count :]
    hints = events[2 * count + 1 : 4 * count : 2]
    for number, layer in enumerate(layers):
        assert little[number][1] is told[number][1] is hints[number][1] is full[number][1] is layer
        ids, scores = hints[number][2:]
        assert ids.shape == scores.shape == (2, 2)
        assert torch.equal(ids[:, :1], little[number][2])  # the favourites, which the little pass has used
        assert (scores.diff(dim=1) <= 0).all()
        assert torch.equal(told[number][2], ids)
    # What the first layer sees does not depend on experts: there the hint is exactly what is used.
    assert torch.equal(hints[0][2], full[0][2])


def test_only_the_unsure_sequences_are_announced(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    hinted: list[int] = []
    monkeypatch.setattr(Layer, "hint", lambda _layer, ids, _scores: hinted.append(len(ids)))
    inputs = padded([4, 5, 6])
    found = moerun.generate(model, inputs, moerun.BigLittle(threshold=0.035), **GREEDY)
    unsure = [step.count(False) for step in found.little if not all(step)]
    assert hinted == [count for count in unsure for _ in model.moerun_engine.layers]
    assert any(0 < count < 3 for count in unsure)


def test_a_verification_is_announced_by_what_its_drafts_have_chosen(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    hinted: list[int] = []
    monkeypatch.setattr(Layer, "hint", lambda _layer, ids, _scores: hinted.append(len(ids)))
    options = moerun.BigLittle(threshold=0.0, lossless=True)
    rounds = moerun.generate(model, PROMPT, options, **GREEDY).rounds
    littles = [r.little_passes for r in rounds if r.little_passes]
    assert max(littles) > 1
    assert hinted == [count for count in littles for _ in model.moerun_engine.layers]


def test_hints_and_pins_do_nothing_on_the_cpu(model: PreTrainedModel) -> None:
    layer = model.moerun_engine.layers[0]
    with layer.pinned(torch.tensor([[0, 1]])):
        assert layer.hint(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]])) is None
