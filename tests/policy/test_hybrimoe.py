"""HybriMoE's greedy scheduler against the worked example of the paper (arXiv 2504.05897, Fig. 5)."""

from __future__ import annotations

import pytest

from moerun import policy

A, B, C, D, E = range(5)
LOADS = [1, 1, 3, 4, 1]
RESIDENT = [False, False, False, True, True]
# A copy takes 3 units, an expert on the GPU 1, on the CPU its load; shared experts keep the GPU busy for 2.
COST = policy.CostModel(
    cpu_first_us=0, cpu_expert_us=0, cpu_token_us=1, gpu_expert_us=1, gpu_token_us=0, copy_us=3
)


def test_figure_5_order() -> None:
    order = policy.hybrimoe_order(LOADS, RESIDENT, COST, shared_gpu_us=2)
    assert order == [("cpu", A), ("cpu", B), ("gpu", D), ("copy", C), ("cpu", E), ("gpu", C)]


def test_figure_5_timeline() -> None:
    plan = policy.split(LOADS, RESIDENT, COST, "hybrimoe", shared_gpu_us=2)
    #                        0   1   2   3   4
    # CPU                    | A | B | E |
    # PCIe                   |     C     |
    # GPU                    |shared | D | C |
    assert plan.cpu_intervals == [(A, 0, 1), (B, 1, 2), (E, 2, 3)]
    assert plan.copy_intervals == [(C, 0, 3)]
    assert plan.gpu_intervals == [(D, 2, 3), (C, 3, 4)]
    assert plan.cpu_fraction.tolist() == [1, 1, 1]
    assert plan.makespan_us == 4


def test_cpu_takes_the_lightest_miss_and_pcie_the_heaviest() -> None:
    cost = policy.CostModel(0, 0, 10, 1, 0, copy_us=15)
    order = policy.hybrimoe_order([2, 1, 9, 5], [False] * 4, cost)
    assert order[:2] == [("cpu", 1), ("copy", 2)]


def test_the_first_expert_on_the_cpu_costs_more_once() -> None:
    cost = policy.CostModel(7, 1, 0, 100, 0, copy_us=1000)
    plan = policy.split([1, 1, 1], [False] * 3, cost, "hybrimoe")
    assert plan.cpu_intervals == [(0, 0, 8), (1, 8, 9), (2, 9, 10)]


@pytest.mark.parametrize("resident", [[True, True], [False, False]])
def test_a_copied_expert_is_never_stolen(resident: list[bool]) -> None:
    cost = policy.CostModel(0, 1, 0, 1, 0, copy_us=0.1)
    plan = policy.split([1, 5], resident, cost, "hybrimoe")
    assert not set(plan.copy.tolist()) & set(plan.cpu.tolist())
