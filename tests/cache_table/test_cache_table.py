"""The cache's bookkeeping against a model: two dictionaries that are obviously right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from moerun import _core

STATES = ("free", "loading", "resident", "in use", "evicting")
CHANGES = {
    "loaded": "loading",
    "abandon": "loading",
    "pin": ("resident", "in use"),
    "unpin": "in use",
    "evict": "resident",
    "freed": "evicting",
}


class Cache(RuleBasedStateMachine):
    """Any sequence of calls: those that the state allows do what they say, all others raise and change
    nothing."""

    @initialize(slots=st.integers(0, 6), experts=st.lists(st.integers(0, 5), min_size=1, max_size=3))
    def create(self, slots: int, experts: list[int]) -> None:
        self.experts = experts
        self.table = _core.CacheTable(slots, experts)
        self.state = dict.fromkeys(range(slots), "free")
        self.pins = dict.fromkeys(range(slots), 0)
        self.owner: dict[int, tuple[int, int]] = {}
        self.values = [_core.policy.CacheValues("lru", n, 1) for n in experts if n > 0]

    def some_expert(self, data: st.DataObject) -> tuple[int, int]:
        layer = data.draw(st.sampled_from([n for n, count in enumerate(self.experts) if count]))
        return layer, data.draw(st.integers(0, self.experts[layer] - 1))

    @precondition(lambda self: any(self.experts))
    @rule(data=st.data())
    def reserve(self, data: st.DataObject) -> None:
        expert = self.some_expert(data)
        if expert in self.owner.values():
            with pytest.raises(RuntimeError, match="already has slot"):
                self.table.reserve(*expert)
            return
        slot = self.table.reserve(*expert)
        assert (slot == -1) == ("free" not in self.state.values())
        if slot >= 0:
            assert self.state[slot] == "free"
            self.state[slot], self.owner[slot] = "loading", expert

    @precondition(lambda self: self.state)
    @rule(change=st.sampled_from(sorted(CHANGES)), data=st.data())
    def change(self, change: str, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.state)))
        allowed = self.state[slot] in CHANGES[change]
        if isinstance(CHANGES[change], str):
            allowed = self.state[slot] == CHANGES[change]
        if not allowed:
            with pytest.raises(RuntimeError, match=f"slot {slot} is {self.state[slot]}"):
                getattr(self.table, change)(slot)
            return
        getattr(self.table, change)(slot)
        if change in ("pin", "unpin"):
            self.pins[slot] += 1 if change == "pin" else -1
            self.state[slot] = "in use" if self.pins[slot] else "resident"
        else:
            after = {"loaded": "resident", "abandon": "evicting", "evict": "evicting", "freed": "free"}
            self.state[slot] = after[change]
        if self.state[slot] in ("evicting", "free"):
            self.owner.pop(slot, None)

    @precondition(lambda self: all(self.experts))
    @rule(data=st.data())
    def use(self, data: st.DataObject) -> None:
        layer, expert = self.some_expert(data)
        loads = np.zeros(self.experts[layer], np.int32)
        loads[expert] = 1
        self.values[layer].observe(loads)

    @precondition(lambda self: all(self.experts))
    @rule()
    def victim(self) -> None:
        worth = {
            s: (self.values[layer].values[expert], s)
            for s, (layer, expert) in self.owner.items()
            if self.state[s] == "resident"
        }
        assert self.table.victim(self.values) == min(worth, key=lambda s: worth[s], default=-1)

    @rule(slot=st.sampled_from([-1, 6, 1000]))
    def slot_that_does_not_exist(self, slot: int) -> None:
        with pytest.raises(ValueError, match=f"no slot {slot}"):
            self.table.pin(slot)

    @invariant()
    def agrees_with_the_model(self) -> None:
        for slot, state in self.state.items():
            assert self.table.state(slot) == state
            assert self.table.pins(slot) == self.pins[slot]
            assert self.table.owner(slot) == self.owner.get(slot, (-1, -1))
        slot_of = {expert: slot for slot, expert in self.owner.items()}
        for layer, count in enumerate(self.experts):
            held = [slot_of.get((layer, e), -1) for e in range(count)]
            assert [self.table.slot_of(layer, e) for e in range(count)] == held
            here = [s >= 0 and self.state[s] in ("resident", "in use") for s in held]
            assert self.table.resident(layer) == here
        counts = {state: sum(s == state for s in self.state.values()) for state in STATES}
        assert self.table.counts == counts
        assert sum(counts.values()) == self.table.slots == len(self.state)


Cache.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestCache = Cache.TestCase


def test_the_expert_used_longest_ago_leaves_first_whatever_its_layer() -> None:
    table = _core.CacheTable(3, [2, 2])
    values = [_core.policy.CacheValues("lru", 2, 1) for _ in range(2)]
    for layer, expert in ((0, 0), (1, 0), (0, 1)):
        table.loaded(table.reserve(layer, expert))
    for _ in range(2):
        values[0].observe(np.array([1, 1], np.int32))
    values[1].observe(np.array([1, 0], np.int32))
    assert table.owner(table.victim(values)) == (1, 0)
    table.pin(table.slot_of(1, 0))
    assert table.owner(table.victim(values)) == (0, 0)


@pytest.mark.parametrize(("slots", "experts"), [(-1, [4]), (4, [-2])])
def test_sizes_below_zero_are_refused(slots: int, experts: list[int]) -> None:
    with pytest.raises(ValueError, match="cannot have"):
        _core.CacheTable(slots, experts)


def test_an_expert_that_does_not_exist_is_refused() -> None:
    table = _core.CacheTable(1, [4])
    for layer, expert in ((0, 4), (0, -1), (1, 0), (-1, 0)):
        with pytest.raises(ValueError, match="there is no expert"):
            table.slot_of(layer, expert)
