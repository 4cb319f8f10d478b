"""Sampling: a lossless run draws from the full model's distribution, and the test tells one that does not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

import moerun
from moerun.big_little.sampling import choose, verify_greedy, verify_sampled

KEPT = 2  # tokens that top_k leaves at each place
PLACES = 4  # the first comes out of the prompt, the others of drafts and their verification
SAMPLES, BATCH = 3000, 500
# A chi-square variable with 15 degrees of freedom (2^4 - 1 texts) exceeds this with a probability of 1e-4.
CRITICAL = 44.3


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def distributions(count: int, size: int) -> st.SearchStrategy[list[torch.Tensor]]:
    weights = st.lists(st.floats(0.0, 1.0), min_size=size, max_size=size).filter(lambda w: sum(w) > 0.1)
    return st.lists(weights.map(lambda w: torch.tensor(w) / sum(w)), min_size=count, max_size=count)


@given(q=distributions(1, 5), p=distributions(2, 5), seed=st.integers(0, 2**31))
def test_only_tokens_that_the_full_model_allows_come_out(
    q: list[torch.Tensor], p: list[torch.Tensor], seed: int
) -> None:
    torch.manual_seed(seed)
    draft = int(torch.multinomial(q[0], 1))
    tokens = verify_sampled([draft], q, p)
    assert 1 <= len(tokens) <= 2
    assert all(p[place][token] > 0 for place, token in enumerate(tokens))
    assert len(tokens) == 1 or tokens[0] == draft


def test_rejection_sampling_has_the_target_distribution() -> None:
    torch.manual_seed(0)
    q, p = torch.tensor([0.6, 0.3, 0.1, 0.0]), torch.tensor([0.2, 0.3, 0.1, 0.4])
    drafts = torch.multinomial(q, 20_000, replacement=True).tolist()
    first = [verify_sampled([draft], [q], [p, p])[0] for draft in drafts]
    counts = np.bincount(first, minlength=4)
    assert chi_square(counts, 20_000 * p.numpy()) < 21.1  # 3 degrees of freedom, 1e-4
    assert chi_square(np.bincount(drafts, minlength=4)[:3], 20_000 * p.numpy()[:3]) > 1000


def test_equal_distributions_accept_every_draft() -> None:
    p = torch.tensor([0.5, 0.5])
    for draft in (0, 1):
        assert verify_sampled([draft, 0], [p, p], [p, p, torch.tensor([0.0, 1.0])]) == [draft, 0, 1]


@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(0, 2), min_size=7, max_size=7))
def test_greedy_verification_yields_the_targets_up_to_the_first_difference(
    drafts: list[int], targets: list[int]
) -> None:
    tokens = verify_greedy(drafts, targets)
    right = len(tokens) - 1
    assert tokens == targets[: right + 1]
    assert drafts[:right] == targets[:right]
    assert right == len(drafts) or drafts[right] != targets[right]


def test_choice() -> None:
    scores = torch.tensor([[0.0, 5.0, 1.0], [float("-inf"), float("-inf"), 0.0]])
    assert choose(scores, do_sample=False).tolist() == [1, 2]
    assert choose(scores, do_sample=True)[1] == 2


@pytest.fixture(scope="module")
def model(pair_of: Callable) -> PreTrainedModel:
    return pair_of("qwen3_moe", initializer_range=0.3).ours  # surer than the others, and in other tokens


PROMPT = torch.tensor([[5, 17, 80, 33]])


@torch.no_grad()
def probabilities(model: PreTrainedModel) -> dict[tuple[int, ...], float]:
    """Of every text of PLACES tokens that sampling with top_k=KEPT can give."""
    found = {(): 1.0}
    for _ in range(PLACES):
        longer = {}
        for text, probability in found.items():
            logits = model(torch.cat([PROMPT, torch.tensor([text], dtype=torch.long)], dim=1)).logits[0, -1]
            best = logits.topk(KEPT)
            for token, p in zip(best.indices.tolist(), best.values.softmax(-1).tolist(), strict=True):
                longer[(*text, token)] = probability * p
        found = longer
    return found


def statistic(model: PreTrainedModel, expected: dict[tuple[int, ...], float], **options) -> float:
    """Chi-square of what a run samples against what the full model would."""
    torch.manual_seed(11)
    counts = dict.fromkeys(expected, 0)
    for _ in range(SAMPLES // BATCH):
        found = moerun.generate(
            model,
            PROMPT,
            moerun.BigLittle(little_k=1, threshold=0.0, **options),
            do_sample=True,
            top_k=KEPT,
            temperature=1.0,
            num_return_sequences=BATCH,
            max_new_tokens=PLACES,
            eos_token_id=None,
        )
        for text in found.sequences[:, PROMPT.shape[1] :].tolist():
            if tuple(text) not in counts:
                return float("inf")
            counts[tuple(text)] += 1
    observed, wanted = (np.array([d[text] for text in counts]) for d in (counts, expected))
    return chi_square(observed, SAMPLES * wanted)


def test_a_lossless_run_samples_as_the_full_model_does(model: PreTrainedModel) -> None:
    expected = probabilities(model)
    assert len(expected) == KEPT**PLACES
    assert min(expected.values()) * SAMPLES > 5  # enough for the test to be one
    assert statistic(model, expected, lossless=True, refresh=3) < CRITICAL


def test_the_little_model_alone_does_not(model: PreTrainedModel) -> None:
    assert statistic(model, probabilities(model)) > 10 * CRITICAL


def test_a_seed_gives_the_same_text(demo: PreTrainedModel, demo_tokenizer) -> None:
    inputs = demo_tokenizer("def main():\n", return_tensors="pt")

    def sample(seed: int, **options) -> list[int]:
        torch.manual_seed(seed)
        big_little = moerun.BigLittle(threshold=0.4, **options)
        return moerun.generate(demo, inputs, big_little, do_sample=True, max_new_tokens=20).sequences.tolist()

    for options in ({}, {"refresh": 3}, {"lossless": True}):
        assert sample(5, **options) == sample(5, **options) != sample(6, **options)
