"""The decoding loop of one sequence: the text of transformers' loop on the same model, and when it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

import moerun.hf
from moerun.dense import TokenRun
from moerun.hf import decode_loop, model_step

PROMPT = torch.arange(3, 14).view(1, -1)


@pytest.fixture
def model(random_checkpoint: Callable[..., Path]) -> PreTrainedModel:
    return moerun.hf.from_pretrained(random_checkpoint("qwen3_moe"), cpu_threads=1)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens that all runs were given."""
    seen: list[int] = []
    real = TokenRun.next

    def spy(self: TokenRun, token: int) -> int:
        seen.append(token)
        return real(self, token)

    monkeypatch.setattr(TokenRun, "next", spy)
    return seen


def by_transformers(model: PreTrainedModel, prompt: torch.Tensor, **options: Any) -> torch.Tensor:
    """The text of transformers' own loop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_step, "may_decode", lambda *_: False)
        return model.generate(prompt, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"eos_token_id": list(range(0, 128, 3))},
        {"eos_token_id": 5, "min_new_tokens": 40},
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 2},
        {"do_sample": True, "temperature": 1.5},
        {"do_sample": True, "top_k": 4, "top_p": 0.9, "repetition_penalty": 1.2},
        {"attention_mask": torch.ones_like(PROMPT)},
        {"max_time": 1e-9},
    ],
    ids=lambda options: "-".join(options) or "greedy",
)
def test_equals_transformers_loop(model: PreTrainedModel, runs: list[int], options: dict[str, Any]) -> None:
    """Also sample by sample from the same seed."""
    options = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0, **options}
    torch.manual_seed(0)
    got = model.generate(PROMPT, **options)
    assert runs == got[0, PROMPT.shape[1] : -1].tolist()
    torch.manual_seed(0)
    assert torch.equal(got, by_transformers(model, PROMPT, **options))
    assert len(runs) == got.shape[1] - PROMPT.shape[1] - 1


def test_room_for_many_tokens_comes_in_parts(
    model: PreTrainedModel, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_loop, "MOST_TOKENS", 7)
    options = {"max_new_tokens": 30, "min_new_tokens": 30, "do_sample": False}
    assert torch.equal(model.generate(PROMPT, **options), by_transformers(model, PROMPT, **options))
    assert len(runs) == 29


def test_a_cache_goes_on(model: PreTrainedModel, runs: list[int]) -> None:
    """A conversation: the cache of the first text serves the second one."""
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    cache = DynamicCache()
    first = model.generate(PROMPT, past_key_values=cache, **options)
    assert cache.get_seq_length() == first.shape[1] - 1
    longer = torch.cat((first, torch.tensor([[9, 8, 7]])), 1)
    got = model.generate(longer, past_key_values=cache, **options)
    assert len(runs) == 10
    assert torch.equal(got, by_transformers(model, longer, **options))


class Streamer(BaseStreamer):
    def __init__(self, most: int = 1000) -> None:
        self.seen: list[torch.Tensor] = []
        self.most, self.ended = most, False

    def put(self, value: torch.Tensor) -> None:
        self.seen.append(value)
        if len(self.seen) > self.most:
            raise KeyboardInterrupt

    def end(self) -> None:
        self.ended = True


def test_streamers_get_what_they_get_from_transformers(model: PreTrainedModel, runs: list[int]) -> None:
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    ours, theirs = Streamer(), Streamer()
    model.generate(PROMPT, streamer=ours, **options)
    assert len(runs) == 7
    by_transformers(model, PROMPT, streamer=theirs, **options)
    assert ours.ended
    assert [t.shape for t in ours.seen] == [t.shape for t in theirs.seen]
    assert all(torch.equal(a, b) for a, b in zip(ours.seen, theirs.seen, strict=True))


def test_an_interrupted_run_leaves_a_cache_of_what_was_run(model: PreTrainedModel, runs: list[int]) -> None:
    cache = DynamicCache()
    with pytest.raises(KeyboardInterrupt):
        model.generate(
            PROMPT, past_key_values=cache, streamer=Streamer(4), max_new_tokens=20, min_new_tokens=20
        )
    assert cache.get_seq_length() == PROMPT.shape[1] + len(runs)
    with torch.no_grad():
        got = model(torch.tensor([[5]]), past_key_values=cache).logits
        whole = torch.cat((PROMPT, torch.tensor([[*runs, 5]])), 1)
        want = model(whole, use_cache=False).logits[:, -1:]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"return_dict_in_generate": True, "output_scores": True},
        {"attention_mask": torch.tensor([[0, *[1] * (PROMPT.shape[1] - 1)]])},
        {"use_cache": False},
        {"prefill_chunk_size": 4},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_options_take_transformers_loop(
    model: PreTrainedModel, runs: list[int], options: dict[str, Any]
) -> None:
    model.generate(PROMPT, max_new_tokens=3, do_sample=False, **options)
    assert runs == []


def test_batches_take_transformers_loop(model: PreTrainedModel, runs: list[int]) -> None:
    model.generate(PROMPT.repeat(2, 1), max_new_tokens=3, do_sample=False)
    assert runs == []


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_largest_is_torchs(random_checkpoint: Callable[..., Path], dtype: str) -> None:
    """Of logits of every type, with ties: their first."""
    model = moerun.hf.from_pretrained(random_checkpoint("qwen3_moe"), cpu_threads=1, dtype=dtype)
    with torch.no_grad():
        model.lm_head.weight[64:] = model.lm_head.weight[:64]
        cache = model(PROMPT).past_key_values
    step = model.moerun_step.value
    with step.run(cache, 20) as run:
        token = 40
        for _ in range(20):
            token = run.next(token)
            assert token == int(run.logits.argmax())
            assert token < 64


def test_refuses_what_does_not_fit(model: PreTrainedModel) -> None:
    with torch.no_grad():
        cache = model(PROMPT).past_key_values
    step = model.moerun_step.value
    with step.run(cache, 2) as run:
        for token in (-1, model.config.vocab_size):
            with pytest.raises(ValueError, match="is outside of"):
                run.next(token)
        run.length = 10_000
        with pytest.raises(ValueError, match="at position 10000"):
            run.next(0)
        run.length = PROMPT.shape[1]
        caches = step.decoder.caches([(layer.keys, layer.values) for layer in cache.layers])
        cos, sin = step.rotation.first(4)
        with pytest.raises(ValueError, match="embedding must be"):
            TokenRun(step.decoder, torch.zeros(3, 5), cos, sin, caches, 0)
        with pytest.raises(ValueError, match="cos and sin must be"):
            TokenRun(step.decoder, step.embedding.weight.detach(), cos.double(), sin, caches, 0)
