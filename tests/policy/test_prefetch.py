"""Prefetch: what is worth copying ahead, and when nothing is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moerun import policy

COST = policy.CostModel(
    cpu_first_us=0, cpu_expert_us=100, cpu_token_us=0, gpu_expert_us=10, gpu_token_us=0, copy_us=60
)


def forecast(**changes: Any) -> tuple:
    """Two of four experts of the next layer are expected; none of them is cached, two slots are free."""
    fields = {
        "distance": 1,
        "start_us": 1000.0,
        "loads": np.array([1, 1, 0, 0], np.int32),
        "chance": np.array([0.9, 0.6, 0, 0]),
        "resident": np.zeros(4, bool),
        "left": np.ones(4),
        "victims": [-1, -1],
        "victim_chance": [0.0, 0.0],
    } | changes
    return tuple(fields.values())


def experts(chosen: list[tuple]) -> list[tuple[int, int]]:
    return [(distance, expert) for distance, expert, *_ in chosen]


def test_gain_is_the_makespan_that_replanning_saves() -> None:
    before = policy.split([1, 1, 0, 0], [False] * 4, COST, allow_fraction=False).makespan_us
    after = policy.split([1, 1, 0, 0], [True, False, False, False], COST, allow_fraction=False).makespan_us
    chosen = policy.prefetch([forecast()], COST)
    assert (before, after) == (100, 70)
    assert chosen[0] == (1, 0, -1, pytest.approx(0.9 * (before - after)))


def test_an_expert_that_would_not_shorten_the_layer_is_left() -> None:
    # The other miss keeps the CPU busy for 100 us either way, and copies are slow.
    slow = policy.CostModel(0, 100, 0, 200, 0, copy_us=300)
    assert policy.prefetch([forecast(loads=np.array([1, 0, 0, 0], np.int32))], slow) == []


def test_it_must_arrive_in_time() -> None:
    assert policy.prefetch([forecast(start_us=59.0)], COST) == []
    assert experts(policy.prefetch([forecast(start_us=60.0)], COST)) == [(1, 0)]
    assert policy.prefetch([forecast(start_us=60.0)], COST, pcie_free_us=1.0) == []


def test_a_copy_that_was_put_off_needs_less_time_and_is_worth_more_per_byte() -> None:
    begun = forecast(start_us=20.0, left=np.array([1, 0.25, 1, 1]))
    assert experts(policy.prefetch([begun], COST)) == [(1, 1)]  # 15 us are left of it
    assert experts(policy.prefetch([forecast(left=np.array([1, 0.25, 1, 1]))], COST))[0] == (1, 1)


def test_abstains_when_demand_keeps_pcie_busy() -> None:
    assert policy.prefetch([forecast()], COST, pcie_free_us=1000.0) == []


def test_abstains_when_the_evicted_expert_is_as_likely() -> None:
    assert policy.prefetch([forecast(victims=[2, 3], victim_chance=[0.9, 0.9])], COST) == []
    kept = policy.prefetch([forecast(victims=[2, 3], victim_chance=[0.1, 0.95])], COST)
    assert [(expert, victim) for _, expert, victim, _ in kept] == [(0, 2)]


def test_abstains_without_a_slot() -> None:
    assert policy.prefetch([forecast(victims=[], victim_chance=[])], COST) == []


def test_abstains_when_waiting_for_a_chunk_costs_more_than_a_doubtful_hit_saves() -> None:
    doubtful = forecast(chance=np.array([0.1, 0.1, 0, 0]))
    assert policy.prefetch([doubtful], COST, chunk_us=0.0) != []
    assert policy.prefetch([doubtful], COST, chunk_us=20.0) == []


def test_the_larger_gain_goes_first_though_the_layer_is_further() -> None:
    far = forecast(distance=2, chance=np.array([0.95, 0, 0, 0]), loads=np.array([1, 1, 0, 0], np.int32))
    near = forecast(chance=np.array([0.3, 0.2, 0, 0]))
    assert experts(policy.prefetch([near, far], COST))[0] == (2, 0)


def test_without_impact_confidence_alone_decides() -> None:
    lone = forecast(distance=2, loads=np.array([1, 0, 0, 0], np.int32), chance=np.array([0.8, 0, 0, 0]))
    several = forecast(loads=np.array([1, 1, 0, 0], np.int32), chance=np.array([0.9, 0.9, 0, 0]))
    by_confidence = policy.prefetch([lone, several], COST, impact=False)
    assert experts(by_confidence) == [(1, 0), (1, 1), (2, 0)]
    by_impact = policy.prefetch([lone, several], COST)
    gains = dict(zip(experts(by_impact), (gain for *_, gain in by_impact), strict=True))
    assert gains[(2, 0)] > gains[(1, 0)]


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.floats(0, 1), st.booleans(), st.floats(0, 1)), min_size=1, max_size=10
    ),
    st.floats(0, 500),
    st.floats(0, 500),
)
def test_what_is_chosen_is_predicted_missing_distinct_and_in_time(
    rows: list[tuple], start_us: float, pcie_free_us: float
) -> None:
    loads, chance, resident, victim_chance = (np.array(column) for column in zip(*rows, strict=True))
    idle = [int(e) for e in np.flatnonzero(resident & (loads == 0))]
    left = np.ones(len(loads))
    harm = [float(victim_chance[e]) for e in idle]
    chosen = policy.prefetch(
        [(1, start_us, loads, chance, resident, left, idle, harm)],
        COST,
        pcie_free_us=pcie_free_us,
    )
    ids = [expert for _, expert, _, _ in chosen]
    assert len(ids) == len(set(ids)) <= len(idle)
    assert all(loads[e] > 0 and not resident[e] for e in ids)
    assert all(gain > 0 for *_, gain in chosen)
    if chosen:
        assert pcie_free_us + len(chosen) * COST.copy_us <= start_us + 1e-6


def test_confidence_is_learned_per_distance_and_rank() -> None:
    confidence = policy.PrefetchConfidence(ranks=2)
    for _ in range(400):
        confidence.observe(1, 0, True)
        confidence.observe(3, 1, False)
    assert confidence.value(1, 0) > 0.95
    assert confidence.value(3, 1) < 0.05
    assert confidence.value(3, 9) == confidence.value(3, 1)  # beyond the last rank
    assert confidence.value(2, 0) == 0.5
    with pytest.raises(ValueError, match="distance 4"):
        confidence.value(4, 0)
