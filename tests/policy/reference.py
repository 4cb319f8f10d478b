"""What the policies are held to, written a second time: a plan's execution, and the optimum by trying all."""

from __future__ import annotations

import itertools

from moerun import policy

from .instances import Instance


def cpu_us(cost: policy.CostModel, load: int) -> float:
    return cost.cpu_expert_us + load * cost.cpu_token_us


def gpu_us(cost: policy.CostModel, load: int) -> float:
    return cost.gpu_expert_us + load * cost.gpu_token_us


def execute(instance: Instance, plan: policy.Plan) -> float:
    """The time at which a machine that follows the plan's three lists has finished."""
    cost, loads = instance.cost, instance.loads
    share = dict(zip(plan.cpu.tolist(), plan.cpu_fraction.tolist(), strict=True))
    on_cpu = sum(f * cpu_us(cost, loads[e]) + (f < 1) * cost.cpu_part_us for e, f in share.items())
    if share:
        on_cpu += cost.cpu_first_us
    ready, on_pcie = {}, 0.0
    for e, part in zip(plan.copy.tolist(), plan.copy_fraction.tolist(), strict=True):
        on_pcie += part * cost.copy_us
        ready[e] = on_pcie
    on_gpu = instance.shared_gpu_us
    for e in plan.gpu.tolist():
        on_gpu = max(on_gpu, ready.get(e, 0.0)) + (1 - share.get(e, 0.0)) * gpu_us(cost, loads[e])
        on_gpu += (e in share) * cost.gpu_part_us
    return max(on_cpu, on_gpu)


def brute_force(instance: Instance, dividing: str, copy_price: float = 0.0) -> float:
    """The best makespan, with the price of the copies, over all assignments, orders of the copies, and
    (bisected) splits of one expert."""
    active = [e for e in range(len(instance.loads)) if instance.loads[e] > 0]
    best = float("inf")
    for on_gpu in itertools.product([False, True], repeat=len(active)):
        gpu = [e for e, flag in zip(active, on_gpu, strict=True) if flag]
        cpu = [e for e in active if e not in gpu]
        price_us = copy_price * instance.cost.copy_us
        copies = sum(not instance.resident[e] for e in gpu)
        best = min(best, max(_ends(instance, cpu, gpu, None, 0.0)) + price_us * copies)
        for divided in active if dividing != "never" else []:
            piece = dividing == "partial copy" and not instance.resident[divided]
            if piece == (divided in gpu):  # a piece is of an expert that is otherwise on the CPU
                continue
            others = [e for e in cpu if e != divided]
            low, high = 0.0, 1.0
            for _ in range(50):
                middle = (low + high) / 2
                cpu_end, gpu_end = _ends(instance, others, gpu, divided, middle)
                low, high = (middle, high) if cpu_end < gpu_end else (low, middle)
            copied = copies + (1 - high if piece else 0)
            best = min(best, max(_ends(instance, others, gpu, divided, high)) + price_us * copied)
    return best


def _ends(
    instance: Instance, cpu: list[int], gpu: list[int], divided: int | None, share: float
) -> tuple[float, float]:
    """When CPU and GPU end; a divided expert outside of ``gpu`` is copied in part, last."""
    cost, loads = instance.cost, instance.loads
    cpu_end = cost.cpu_first_us if cpu or share > 0 else 0.0
    cpu_end += sum(cpu_us(cost, loads[e]) for e in cpu)
    if divided is not None:
        cpu_end += share * cpu_us(cost, loads[divided]) + cost.cpu_part_us
    rest = {e: gpu_us(cost, loads[e]) * (1 - share if e == divided else 1) for e in gpu}
    if divided in rest:
        rest[divided] += cost.gpu_part_us
    start = instance.shared_gpu_us + sum(rest[e] for e in gpu if instance.resident[e])
    copied = [e for e in gpu if not instance.resident[e]]
    gpu_end = float("inf")
    for order in itertools.permutations(copied):
        time = start
        for i, e in enumerate(order):
            time = max(time, (i + 1) * cost.copy_us) + rest[e]
        gpu_end = min(gpu_end, time)
    if divided is not None and divided not in gpu:
        arrival = (len(copied) + 1 - share) * cost.copy_us
        gpu_end = max(gpu_end, arrival) + (1 - share) * gpu_us(cost, loads[divided]) + cost.gpu_part_us
    return cpu_end, gpu_end
