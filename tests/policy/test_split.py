"""Every split method: what each plan must be, and how near "balanced" comes to the optimum."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moerun import policy

from .instances import DIVIDING, SHAPES, Instance, instances, random_instance
from .reference import brute_force, execute

SPLITTING = ("balanced", "exact")


def test_all_methods_of_the_documentation_are_there() -> None:
    assert set(policy.METHODS) == {
        "hybrimoe", "balanced", "static", "ondemand", "layerwise", "cpu", "gpu", "exact",
    }  # fmt: skip


@pytest.mark.parametrize("method", policy.METHODS)
@given(instance=instances(), dividing=st.sampled_from(DIVIDING))
def test_a_plan_runs_every_active_expert_exactly_once(method: str, instance: Instance, dividing: str) -> None:
    plan = instance.split(method, dividing)
    active = set(np.flatnonzero(instance.loads).tolist())
    cpu, gpu, copy = plan.cpu.tolist(), plan.gpu.tolist(), plan.copy.tolist()
    for ids in (cpu, gpu, copy):
        assert len(ids) == len(set(ids))
    assert set(cpu) | set(gpu) == active

    assert len(plan.cpu_fraction) == len(cpu)
    divided = [e for e, f in zip(cpu, plan.cpu_fraction, strict=True) if f < 1]
    assert all(0 < f <= 1 for f in plan.cpu_fraction)
    assert set(cpu) & set(gpu) == set(divided)
    assert len(divided) <= (1 if dividing != "never" and method in SPLITTING else 0)

    # Everything is copied whole, but with partial_copy only the GPU's part of a divided expert, last.
    parts = dict(zip(copy, plan.copy_fraction.tolist(), strict=True))
    if dividing == "partial copy" and divided and divided[0] in parts:
        assert copy[-1] == divided[0]
        assert parts.pop(divided[0]) == pytest.approx(
            1 - dict(zip(cpu, plan.cpu_fraction, strict=True))[divided[0]]
        )
    assert all(part == 1 for part in parts.values())

    # The GPU can run only what is resident or has been copied, and nothing is copied in vain.
    assert set(copy) == {e for e in gpu if not instance.resident[e]}


@pytest.mark.parametrize("method", policy.METHODS)
@given(instance=instances(), dividing=st.sampled_from(DIVIDING))
def test_intervals_can_be_executed_and_makespan_is_what_execution_gives(
    method: str, instance: Instance, dividing: str
) -> None:
    plan = instance.split(method, dividing)
    for ids, intervals in (
        (plan.cpu, plan.cpu_intervals),
        (plan.gpu, plan.gpu_intervals),
        (plan.copy, plan.copy_intervals),
    ):
        assert [e for e, _, _ in intervals] == ids.tolist()
        assert all(begin <= end for _, begin, end in intervals)
        for (_, _, before), (_, after, _) in itertools.pairwise(intervals):
            assert before <= after
    arrival = {e: end for e, _, end in plan.copy_intervals}
    for e, begin, _ in plan.gpu_intervals:
        assert begin >= arrival.get(e, 0)
        assert begin >= instance.shared_gpu_us
    last = max((end for *_, end in (*plan.cpu_intervals, *plan.gpu_intervals)), default=0)
    assert plan.makespan_us == pytest.approx(max(last, instance.shared_gpu_us))
    assert plan.makespan_us == pytest.approx(execute(instance, plan))


@given(instance=instances(max_experts=5))
@settings(max_examples=60)
def test_exact_is_the_optimum(instance: Instance) -> None:
    for dividing in DIVIDING:
        optimum = brute_force(instance, dividing)
        assert instance.split("exact", dividing).makespan_us == pytest.approx(optimum, rel=1e-6, abs=1e-6)


@given(instance=instances(), dividing=st.sampled_from(DIVIDING))
def test_order_of_the_methods(instance: Instance, dividing: str) -> None:
    exact = instance.split("exact", dividing).makespan_us
    balanced = instance.split("balanced", dividing).makespan_us
    others = [instance.split(m).makespan_us for m in policy.METHODS if m not in SPLITTING]
    within = 1 + 1e-7
    assert exact <= balanced * within + 1e-6
    assert balanced <= instance.split("hybrimoe").makespan_us * within
    assert exact <= min(others) * within + 1e-6
    assert (
        instance.split("exact", True).makespan_us
        <= instance.split("exact", False).makespan_us * within + 1e-6
    )


@given(instance=instances(), dividing=st.sampled_from(DIVIDING), step=st.sampled_from([0, 1 / 6, 1 / 2]))
def test_a_division_is_never_worse_than_none(instance: Instance, dividing: str, step: float) -> None:
    """By the cost model's own figures, what a part costs beside its share included."""
    whole = instance.split("balanced", "never").makespan_us
    plan = instance.split("balanced", dividing, share_step=step)
    assert plan.makespan_us <= whole * (1 + 1e-7) + 1e-6
    shares = plan.cpu_fraction[plan.cpu_fraction < 1]
    assert len(shares) <= (dividing != "never")
    if step:
        assert shares / step == pytest.approx(np.round(shares / step))


@given(instance=instances(max_experts=5), price=st.sampled_from([0.1, 0.5, 2.0]))
@settings(max_examples=60)
def test_copies_have_their_price(instance: Instance, price: float) -> None:
    for dividing in DIVIDING:
        plan = instance.split("balanced", dividing, price)
        objective = plan.makespan_us + price * instance.cost.copy_us * float(plan.copy_fraction.sum())
        optimum = brute_force(instance, dividing, price)
        assert optimum * (1 - 1e-6) - 1e-6 <= objective <= optimum * 1.10 + 1e-6


@given(instance=instances(), data=st.data())
def test_the_optimum_never_grows_when_something_becomes_cheaper(
    instance: Instance, data: st.DataObject
) -> None:
    exact = instance.split("exact").makespan_us
    misses = [e for e in np.flatnonzero(instance.loads) if not instance.resident[e]]
    if misses:
        resident = instance.resident.copy()
        resident[data.draw(st.sampled_from(misses))] = True
        more = Instance(instance.loads, resident, instance.cost, instance.shared_gpu_us)
        assert more.split("exact").makespan_us <= exact * (1 + 1e-7) + 1e-6
    names = ["cpu_first_us", "cpu_expert_us", "cpu_token_us", "gpu_expert_us", "gpu_token_us", "copy_us"]
    figures = {name: getattr(instance.cost, name) for name in names}
    figures[data.draw(st.sampled_from(names))] *= 0.5
    cheaper = Instance(instance.loads, instance.resident, policy.CostModel(**figures), instance.shared_gpu_us)
    assert cheaper.split("exact").makespan_us <= exact * (1 + 1e-7) + 1e-6


@given(instance=instances(), seed=st.integers(0, 2**32 - 1))
def test_renaming_the_experts_changes_no_makespan(instance: Instance, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(instance.loads))
    renamed = Instance(instance.loads[order], instance.resident[order], instance.cost, instance.shared_gpu_us)
    for method in ("balanced", "hybrimoe", "exact"):
        assert renamed.split(method).makespan_us == pytest.approx(instance.split(method).makespan_us)


# tokens of a step, how many random layers; the optimum takes long to prove for a divided expert in prefill
DECODE, PREFILL, SHORT_PREFILL = ((1, 2, 4, 8, 16), 250), ((32, 64, 256), 60), ((32,), 10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dividing", "sizes"),
    [
        ("never", DECODE),
        ("never", PREFILL),
        ("whole copies", DECODE),
        ("whole copies", SHORT_PREFILL),
        ("partial copy", DECODE),
        ("partial copy", SHORT_PREFILL),
    ],
)
def test_balanced_is_near_the_optimum(shape: str, dividing: str, sizes: tuple[tuple[int, ...], int]) -> None:
    tokens, count = sizes
    rng = np.random.default_rng(2025)
    ratios = []
    for i in range(count):
        instance = random_instance(rng, shape, tokens[i % len(tokens)])
        optimum = instance.split("exact", dividing).makespan_us
        ratios.append(instance.split("balanced", dividing).makespan_us / optimum)
    assert np.mean(ratios) <= 1.01
    assert np.max(ratios) <= 1.10


@given(instance=instances(max_experts=24))
def test_balanced_keeps_its_proven_bound(instance: Instance) -> None:
    """The bound of src/policy/balanced.h, for whole experts."""
    cost = instance.cost
    b, q = cost.cpu_token_us, cost.gpu_token_us
    sides = [np.sort(instance.loads[(instance.loads > 0) & (instance.resident == r)]) for r in (False, True)]
    gap = max((int(np.diff(side).max()) for side in sides if len(side) > 1), default=0)
    beyond = gap * b * q / (b + q) if b + q > 0 else 0.0
    if len(sides[0]) > 1:  # the last copy may be the longest path
        beyond += min(cost.copy_us, q * float(sides[0][-1] - sides[0][0]))
    optimum = instance.split("exact", "never").makespan_us
    assert instance.split("balanced", "never").makespan_us <= (optimum + beyond) * (1 + 1e-7) + 1e-6


def test_fraction_shares_a_single_expert_between_both_sides() -> None:
    # Mixtral, one active expert that is cached: alone, either side would take 100 us.
    cost = policy.CostModel(0, 100, 0, 100, 0, copy_us=1000)
    plan = policy.split([0, 1], [True, True], cost, "balanced")
    assert plan.cpu.tolist() == [1]
    assert plan.gpu.tolist() == [1]
    assert plan.cpu_fraction.tolist() == [0.5]
    assert plan.makespan_us == 50
    assert policy.split([0, 1], [True, True], cost, "balanced", allow_fraction=False).makespan_us == 100


def test_partial_copy_joins_the_bandwidths_of_cpu_and_pcie() -> None:
    # One active expert that is not cached: 100 us on the CPU, or 90 to copy it and 10 to run it.
    cost = policy.CostModel(0, 100, 0, 10, 0, copy_us=90)
    plan = policy.split([1], [False], cost, "balanced", partial_copy=True)
    assert plan.cpu_fraction.tolist() == [0.5]
    assert plan.copy_fraction.tolist() == [0.5]
    assert plan.gpu_intervals == [(0, 45, 50)]
    assert plan.makespan_us == 50
    assert policy.split([1], [False], cost, "balanced").makespan_us > 90


def test_many_tokens_make_copying_worth_while() -> None:
    cost = policy.CostModel(0, 300, 40, 20, 0.5, copy_us=600)
    assert policy.split([1, 0, 0], [False] * 3, cost, "balanced").copy.size == 0
    assert policy.split([64, 0, 0], [False] * 3, cost, "balanced").copy.tolist() == [0]


def test_baselines() -> None:
    cost = policy.CostModel(0, 10, 0, 1, 0, copy_us=5)
    loads, resident = [1, 0, 1, 1], [True, True, False, True]

    def lists(method: str, **options: bool) -> tuple[list[int], list[int], list[int]]:
        plan = policy.split(loads, resident, cost, method, **options)
        return plan.cpu.tolist(), plan.gpu.tolist(), plan.copy.tolist()

    assert lists("static") == ([2], [0, 3], [])
    assert lists("static", prefill=True) == ([], [0, 3, 2], [2])
    assert lists("ondemand") == ([], [0, 3, 2], [2])
    assert lists("layerwise") == ([0, 2, 3], [], [])
    assert lists("cpu") == ([0, 2, 3], [], [])
    assert lists("gpu") == ([], [0, 3, 2], [2])
    on_gpu = policy.split(loads, [True] * 4, cost, "layerwise")
    assert on_gpu.gpu.tolist() == [0, 2, 3]
    heavy = policy.split([50, 40], [False, True], cost, "static")
    assert heavy.copy.tolist() == [0]


def test_nothing_to_do() -> None:
    cost = policy.CostModel(1, 1, 1, 1, 1, 1)
    for method in policy.METHODS:
        assert policy.split([0, 0], [True, False], cost, method).makespan_us == 0
        assert policy.split([0, 0], [True, False], cost, method, shared_gpu_us=3).makespan_us == 3
        assert policy.split(np.zeros(0, int), np.zeros(0, bool), cost, method).makespan_us == 0


@pytest.mark.parametrize(
    ("loads", "resident", "options", "message"),
    [
        ([1, 2], [True], {}, "one entry per expert"),
        ([1, -1], [True, True], {}, r"loads\[1\] is -1"),
        ([[1, 2]], [[True, True]], {}, "one-dimensional"),
        ([1], [True], {"method": "best"}, '"best" is unknown; known: hybrimoe'),
        ([1], [True], {"shared_gpu_us": -1.0}, "shared_gpu_us"),
        ([1], [True], {"copy_price": -1.0}, "copy_price"),
        ([1], [True], {"share_step": 2.0}, "share_step"),
        ([1], [True], {"shared_gpu_us": float("nan")}, "shared_gpu_us"),
    ],
)
def test_bad_arguments_are_named(loads: list, resident: list, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy.split(loads, resident, policy.CostModel(0, 1, 1, 1, 1, 1), **options)


def test_loads_must_be_integers() -> None:
    with pytest.raises(TypeError, match="integer array"):
        policy.split([0.5], [True], policy.CostModel(0, 1, 1, 1, 1, 1))


def test_exact_refuses_what_would_not_fit_into_memory() -> None:
    with pytest.raises(ValueError, match='use "balanced"'):
        policy.split(
            [10**9, 10**9], [False] * 2, policy.CostModel(0, 1, 1, 1, 1, 1), "exact", allow_fraction=False
        )
