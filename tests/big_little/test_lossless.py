"""The lossless mode: greedy text of the full model, token for token, whatever is drafted.

In fp32, where two logits are hardly ever as close as the rounding of passes of one and of several tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

import moerun
from moerun.big_little.draft_length import DraftLength
from random_checkpoints import FAMILIES
from random_prompts import padded

NEW = 12
BATCHES = 5
ROWS = 6


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, pair_of: Callable) -> PreTrainedModel:
    return pair_of(request.param).ours


def lossless(model: PreTrainedModel, inputs: dict[str, torch.Tensor], new: int, **options):
    big_little = moerun.BigLittle(**{"lossless": True, "threshold": 0.0, "little_k": 1, **options})
    return moerun.generate(model, inputs, big_little, do_sample=False, max_new_tokens=new)


def test_hundreds_of_prompts_and_lengths(model: PreTrainedModel) -> None:
    """30 prompts of 1 to 40 tokens per family, in batches and one by one, with drafts of 1 to 8 tokens."""
    generator = torch.Generator().manual_seed(7)
    drafted = accepted = 0
    for batch in range(BATCHES):
        lengths = torch.randint(1, 41, (ROWS,), generator=generator).tolist()
        inputs, longest = padded(lengths, seed=batch), batch % 8 + 1
        usual = model.generate(**inputs, do_sample=False, max_new_tokens=NEW)
        found = lossless(model, inputs, NEW, refresh=longest)
        assert torch.equal(found.sequences, usual)
        drafted, accepted = (
            drafted + found.statistics.drafted_tokens,
            accepted + found.statistics.accepted_tokens,
        )
        for row, length in enumerate(lengths):
            alone = {name: values[row : row + 1, -length:] for name, values in inputs.items()}
            single = lossless(model, alone, NEW, refresh=longest).sequences[0, length:]
            expected = usual[row, max(lengths) :][: len(single)]
            assert torch.equal(single, expected)
            rest = usual[row, max(lengths) + len(single) :]
            assert (rest == model.config.pad_token_id).all()
    assert 0 < accepted < drafted


@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=4),
    new=st.integers(1, 20),
    longest=st.integers(1, 9),
    threshold=st.sampled_from([0.0, 0.02, 0.05, 0.2, 1.0]),
    seed=st.integers(0, 1000),
)
def test_any_batch_any_draft_any_threshold(
    pair_of: Callable, lengths: list[int], new: int, longest: int, threshold: float, seed: int
) -> None:
    model = pair_of("gpt_oss").ours  # its window of 16 tokens makes it the hardest to take back
    inputs = padded(lengths, seed=seed)
    found = lossless(model, inputs, new, refresh=longest, threshold=threshold)
    usual = model.generate(**inputs, do_sample=False, max_new_tokens=new)
    assert torch.equal(found.sequences, usual)


def test_long_text_of_a_trained_model(demo: PreTrainedModel, demo_tokenizer) -> None:
    texts = ["import os\n\n\ndef read(path):\n", "class Node:\n    def", "x = 1\n"]
    inputs = dict(demo_tokenizer(texts, return_tensors="pt", padding=True))
    options = {"do_sample": False, "max_new_tokens": 80}
    found = moerun.generate(demo, inputs, moerun.BigLittle(threshold=0.3, lossless=True), **options)
    assert torch.equal(found.sequences, demo.generate(**inputs, **options))
    statistics = found.statistics
    assert statistics.accepted_tokens > statistics.drafted_tokens / 2
    assert statistics.little_passes + statistics.full_passes + statistics.batch_passes > 0
    assert statistics.full_passes + statistics.batch_passes == len(found.rounds) < 79


def test_logits_processors_see_the_text_before_each_token(demo: PreTrainedModel, demo_tokenizer) -> None:
    inputs = dict(demo_tokenizer(["for i in range(", "def f(x):\n"], return_tensors="pt", padding=True))
    options = {
        "do_sample": False,
        "max_new_tokens": 40,
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 3,
        "min_new_tokens": 30,
    }
    found = moerun.generate(demo, inputs, moerun.BigLittle(threshold=0.0, lossless=True), **options)
    assert torch.equal(found.sequences, demo.generate(**inputs, **options))


def test_an_end_within_a_draft_ends_the_sequence(demo: PreTrainedModel, demo_tokenizer) -> None:
    newline = demo_tokenizer("\n").input_ids[0]
    inputs = dict(demo_tokenizer(["x = [1, 2", "import os"], return_tensors="pt", padding=True))
    options = {"do_sample": False, "max_new_tokens": 40, "eos_token_id": newline, "pad_token_id": 0}
    found = moerun.generate(demo, inputs, moerun.BigLittle(threshold=0.0, lossless=True), **options)
    assert torch.equal(found.sequences, demo.generate(**inputs, **options))
    assert (found.sequences[:, inputs["input_ids"].shape[1] :] == newline).any()


def test_drafts_get_longer_while_they_are_right_and_shorter_when_not() -> None:
    draft = DraftLength(5)
    assert draft.length == 2
    for expected in (3, 4, 5, 5):
        draft.observe([draft.length, 1], [draft.length, 1])
        assert draft.length == expected
    draft.observe([3], [3])  # right, but shorter than it could have been: says little
    assert draft.length == 5
    draft.observe([0, 0], [0, 0])
    assert draft.length == 5
    draft.observe([5, 5], [1, 2])
    assert draft.length == 3
    draft.observe([3], [0])
    draft.observe([1], [0])
    assert draft.length == 1
    assert DraftLength(1).length == 1


@given(st.integers(1, 12), st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=4), max_size=30))
def test_a_draft_is_never_empty_nor_longer_than_allowed(longest: int, history: list[list[int]]) -> None:
    draft = DraftLength(longest)
    for rows in history:
        drafted = [min(row, draft.length) for row in rows]
        draft.observe(drafted, [row // 2 for row in drafted])
        assert 1 <= draft.length <= longest
