"""The replay's cache: Belady is the bound, and slots are respected."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moerun.replay.cache import FREE, REPLAY_CACHES, LayerCache, hit_rate, next_uses


def test_next_uses() -> None:
    used = np.array([[[1, 0]], [[0, 0]], [[1, 1]]], bool)
    assert next_uses(used)[:, 0].tolist() == [[2, 2], [2, 2], [3, 3]]


def random_history(seed: int, steps: int = 40) -> tuple[list, list]:
    rng = np.random.default_rng(seed)
    popularity = rng.random(8)
    loads, scores = [], []
    for _ in range(steps):
        logits = popularity * 3 + rng.gumbel(size=8)
        load = np.zeros(8, np.int32)
        load[np.argsort(-logits)[:2]] = 1
        loads.append([load])
        scores.append([np.exp(logits)[None].astype(np.float32) / np.exp(logits).sum()])
    return loads, scores


@given(st.integers(0, 200), st.integers(1, 7))
def test_nothing_hits_more_often_than_belady(seed: int, slots: int) -> None:
    loads, scores = random_history(seed)
    rates = {p: hit_rate(loads, scores, p, slots, 2, measure_from=0) for p in REPLAY_CACHES}
    assert max(rates.values()) == pytest.approx(rates["belady"])


@pytest.mark.parametrize("policy", REPLAY_CACHES)
def test_slots_are_respected_and_pinned_experts_stay(policy: str) -> None:
    loads, scores = random_history(0)
    used = np.array([[step[0] > 0] for step in loads])
    cache = LayerCache(policy, 3, 2, used[:, 0].sum(0), next_uses(used)[:, 0])
    for s, step in enumerate(loads):
        cache.observe(s, step[0], scores[s][0])
        active = step[0] > 0
        before = cache.resident & active
        for expert in np.flatnonzero(active & ~cache.resident):
            cache.insert(int(expert), active)
        assert cache.resident.sum() <= 3
        assert (cache.resident & before).sum() == before.sum()


def test_free_slots_are_filled_first() -> None:
    cache = LayerCache("lru", 2, 1, np.zeros(4))
    cache.resident[:] = [True, False, False, False]
    assert cache.victims(np.zeros(4, bool), 2) == [FREE, 0]
    cache.insert(3, np.zeros(4, bool))
    assert cache.resident.tolist() == [True, False, False, True]


def test_no_slots_no_victims() -> None:
    cache = LayerCache("mrs", 0, 1, np.zeros(4))
    assert cache.victims(np.zeros(4, bool), 3) == []
    assert not cache.insert(1, np.zeros(4, bool))


def test_unknown_policy() -> None:
    with pytest.raises(ValueError, match="fifo"):
        LayerCache("fifo", 1, 1, np.zeros(4))
