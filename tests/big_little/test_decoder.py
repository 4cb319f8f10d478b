"""Decoding with fallback and refresh: every family against the plainest form of it, and batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from transformers import LogitsProcessor, PreTrainedModel

import moerun
from eager_big_little import decode
from moerun.big_little.generate import Generation
from random_checkpoints import FAMILIES
from random_prompts import padded

NEW = 10


class Case(NamedTuple):
    ours: PreTrainedModel
    eager: PreTrainedModel
    threshold: float  # accepts some of the little passes of PROMPT, and not all


PROMPT = padded([9], seed=4)


def run(model: PreTrainedModel, inputs: dict[str, torch.Tensor], new: int = NEW, **options) -> Generation:
    length = {"max_new_tokens": new, "min_new_tokens": new}
    return moerun.generate(model, inputs, moerun.BigLittle(**options), do_sample=False, **length)


class Listener(LogitsProcessor):
    """Writes down the largest probability of every step."""

    def __init__(self) -> None:
        self.confidences: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.confidences.append(scores.softmax(-1).max().item())
        return scores


def mixing_threshold(model: PreTrainedModel) -> float:
    """Between two confidences of the little passes, so that rounding decides nothing."""
    listener = Listener()
    moerun.generate(
        model,
        PROMPT,
        moerun.BigLittle(threshold=0, little_k=1),
        do_sample=False,
        max_new_tokens=NEW,
        logits_processor=[listener],
    )
    ordered = sorted(listener.confidences[1:])
    for rank in sorted(range(1, len(ordered)), key=lambda rank: abs(2 * rank - len(ordered))):
        threshold = (ordered[rank - 1] + ordered[rank]) / 2
        if 3 <= run(model, PROMPT, threshold=threshold, little_k=1).statistics.fallbacks <= NEW - 4:
            return threshold
    raise AssertionError("no threshold accepts some little passes and not all; choose another prompt")


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, pair_of: Callable) -> Case:
    pair = pair_of(request.param, seed=1)
    for model in pair:  # the bias of sigmoid routers: a smaller top_k would choose by it, and we by weight
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.zero_()
    return Case(*pair, mixing_threshold(pair.ours))


@pytest.mark.parametrize("refresh", [0, 2])
def test_as_the_oracle_does_it(case: Case, refresh: int) -> None:
    prompt = PROMPT["input_ids"][0].tolist()
    found = run(case.ours, PROMPT, threshold=case.threshold, little_k=1, refresh=refresh)
    tokens, little = decode(case.eager, prompt, NEW, 1, case.threshold, refresh)
    assert found.sequences[0, 9:].tolist() == tokens
    assert [row[0] for row in found.little] == little
    statistics = found.statistics
    assert statistics.little_tokens == sum(little)
    assert statistics.new_tokens == NEW
    if refresh == 0:
        assert statistics.fallbacks == statistics.full_passes == NEW - 1 - sum(little)
        assert statistics.little_passes == NEW - 1
    else:
        assert statistics.batch_passes > 0
        assert statistics.refreshed_tokens >= 2 * statistics.batch_passes


def test_a_batch_equals_its_rows(case: Case) -> None:
    lengths = [9, 4, 7]
    batch = padded(lengths, seed=4)
    together = run(case.ours, batch, threshold=case.threshold, little_k=1)
    fallbacks = 0
    for row, length in enumerate(lengths):
        alone = {name: values[row : row + 1, -length:] for name, values in batch.items()}
        single = run(case.ours, alone, threshold=case.threshold, little_k=1)
        assert torch.equal(together.sequences[row, -NEW:], single.sequences[0, -NEW:])
        assert [step[row] for step in together.little] == [step[0] for step in single.little]
        fallbacks += single.statistics.fallbacks
    assert together.statistics.fallbacks == fallbacks
    # Those that are unsure in the same step fall back together.
    assert together.statistics.full_passes == sum(not all(step) for step in together.little)


def test_always_unsure_is_the_full_model(case: Case) -> None:
    batch = padded([9, 4, 7], seed=5)
    options = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW}
    usual = case.ours.generate(**batch, **options)
    for refresh in (0, 3):
        found = run(case.ours, batch, threshold=1.0, refresh=refresh)
        assert torch.equal(found.sequences, usual)
        assert found.statistics.little_tokens == 0


def test_refreshing_every_token_is_the_full_model(case: Case) -> None:
    batch = padded([9, 4, 7], seed=6)
    options = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW}
    found = run(case.ours, batch, threshold=0.0, refresh=1)
    assert torch.equal(found.sequences, case.ours.generate(**batch, **options))
    assert found.statistics.refreshed_tokens == 3 * (NEW - 1)


def test_all_experts_in_every_little_pass_is_the_full_model(case: Case) -> None:
    top_k = case.ours.moerun_engine.layers[0].spec.top_k
    options = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW}
    found = run(case.ours, PROMPT, threshold=0.0, little_k=top_k)
    assert torch.equal(found.sequences, case.ours.generate(**PROMPT, **options))
    assert found.statistics.little_tokens == NEW - 1


def test_a_schedule_gives_every_layer_its_number(case: Case) -> None:
    layers = case.ours.moerun_engine.layers
    top_k = layers[0].spec.top_k
    schedule = [top_k if number % 2 else 1 for number in range(len(layers))]
    found = run(case.ours, PROMPT, threshold=0.0, little_k=schedule)
    assert found.statistics.experts_read == (NEW - 1) * sum(schedule)
