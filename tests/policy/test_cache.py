"""MRS by hand, and the choice of victims."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moerun import policy


def test_mrs_by_hand() -> None:
    score = policy.MrsScore(num_experts=4, top_k=1, alpha=0.5)  # p = 2
    assert score.values.tolist() == [0, 0, 0, 0]
    score.update(np.array([[0.5, 0.3, 0.125, 0.075]], np.float32))
    assert score.values == pytest.approx([0.25, 0.15, 0, 0])
    score.update(np.array([[0.1, 0.2, 0.3, 0.4]], np.float32))
    # TopP = [0, 0, 0.3, 0.4]; S = TopP / 2 + S / 2
    assert score.values == pytest.approx([0.125, 0.075, 0.15, 0.2])


def test_mrs_averages_the_tokens_of_a_step_before_top_p() -> None:
    score = policy.MrsScore(num_experts=3, top_k=1, alpha=0.25, score_top_p=2)
    score.update(np.array([[0.8, 0.2, 0.0], [0.0, 0.3, 0.7]], np.float32))
    # mean = [0.4, 0.25, 0.35], of which the two largest stay
    assert score.values == pytest.approx([0.1, 0, 0.0875])
    score.update(np.zeros((0, 3), np.float32))
    assert score.values == pytest.approx([0.1, 0, 0.0875])


def test_mrs_keeps_exactly_p_of_equal_scores() -> None:
    score = policy.MrsScore(num_experts=6, top_k=1)
    score.update(np.full((1, 6), 1 / 6, np.float32))
    assert np.count_nonzero(score.values) == 2


@given(st.integers(1, 12), st.data())
def test_mrs_stays_within_the_scores_it_has_seen(num_experts: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    alpha = data.draw(st.floats(0.01, 1))
    score = policy.MrsScore(num_experts, top_k, alpha)
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    highest = 0.0
    for _ in range(5):
        scores = rng.dirichlet(np.ones(num_experts), size=3).astype(np.float32)
        highest = max(highest, scores.mean(0).max())
        score.update(scores)
        assert score.values.min() >= 0
        assert score.values.max() <= highest + 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_experts": 4, "top_k": 5}, "top_k"),
        ({"num_experts": 0, "top_k": 0}, "top_k"),
        ({"num_experts": 4, "top_k": 1, "alpha": 0.0}, "alpha"),
        ({"num_experts": 4, "top_k": 1, "score_top_p": 5}, "score_top_p"),
        ({"num_experts": 4, "top_k": 1, "score_top_p": 0}, "score_top_p"),
    ],
)
def test_mrs_refuses_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy.MrsScore(**arguments)


def test_mrs_refuses_scores_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"\[tokens, 4\]"):
        policy.MrsScore(4, 1).update(np.zeros((2, 3), np.float32))


def used(*ids: int) -> np.ndarray:
    loads = np.zeros(4, np.int32)
    loads[list(ids)] = 1
    return loads


ALL, NONE = np.ones(4, bool), np.zeros(4, bool)


def test_each_policy_has_its_own_victim() -> None:
    history = [used(0, 1), used(0, 1), used(0, 2), used(3), used(1)]
    victims = {}
    for name in policy.CACHE_POLICIES:
        values = policy.CacheValues(name, num_experts=4, top_k=2, alpha=0.5)
        for loads in history:
            values.observe(loads)
        victims[name] = values.victim(ALL, NONE)
    assert victims["lru"] == 2 or victims["lru"] == 0  # both last used in the third step
    assert victims["lru"] == 0  # the smaller id on a tie
    assert victims["lfu"] == 2  # used once like 3, but longer ago
    assert victims["mrs"] == 2  # half of the third step's share has decayed twice


def test_mrs_values_follow_the_scores() -> None:
    values = policy.CacheValues("mrs", num_experts=4, top_k=1, alpha=0.5)
    values.observe(used(3), np.array([[0.4, 0.1, 0.0, 0.5]], np.float32))
    assert values.values == pytest.approx([0.2, 0, 0, 0.25])


@pytest.mark.parametrize("name", policy.CACHE_POLICIES)
@given(data=st.data())
def test_a_victim_is_resident_and_not_pinned_and_worth_least(name: str, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 10))
    flags = st.lists(st.booleans(), min_size=size, max_size=size)
    values = policy.CacheValues(name, num_experts=size, top_k=1)
    for loads in data.draw(st.lists(st.lists(st.integers(0, 3), min_size=size, max_size=size), max_size=6)):
        values.observe(np.array(loads))
    resident, pinned = np.array(data.draw(flags)), np.array(data.draw(flags))
    victim = values.victim(resident, pinned)
    choices = np.flatnonzero(resident & ~pinned)
    if len(choices) == 0:
        assert victim == -1
    else:
        assert victim in choices
        assert values.values[victim] == values.values[choices].min()


def test_unknown_policy_is_named() -> None:
    with pytest.raises(ValueError, match='"fifo" is unknown; known: lru'):
        policy.CacheValues("fifo", 4, 1)
