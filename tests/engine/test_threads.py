"""cpu_threads to the letter, and idle threads park. Counted in child processes, where nobody else starts
threads."""

from __future__ import annotations

import pytest

from child_process import check_python

SET_UP = """
    import os, sys, threading, time
    import numpy as np
    import moerun

    def threads():
        return len(os.listdir("/proc/self/task"))

    def cpu_ticks():
        # Fields 14 and 15 of stat are user and system time; the name before them may hold spaces.
        total = 0
        for task in os.listdir("/proc/self/task"):
            fields = open(f"/proc/self/task/{task}/stat").read().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        return total

    rng = np.random.default_rng(0)
    tensors = {"gate_up": rng.normal(size=(4, 128, 96)).astype(np.float32) / 10,
               "down": rng.normal(size=(4, 96, 64)).astype(np.float32) / 10}
    x = rng.normal(size=(40, 96)).astype(np.float32)
    ids = rng.integers(0, 4, (40, 2))
    weights = rng.normal(size=(40, 2)).astype(np.float32)

    def layer_of(engine):
        return engine.add_layer(moerun.LayerSpec(4, 96, 64, top_k=2), tensors)

    before = threads()
    """
NO_BLAS_THREADS = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_forward_adds_cpu_threads_less_the_calling_one(count: int) -> None:
    program = (
        SET_UP
        + f"""
    engine = moerun.Engine(cpu_threads={count})
    layer = layer_of(engine)
    assert threads() == before, "an idle engine has threads"
    for _ in range(20):
        layer.forward(x, ids, weights)
        assert threads() == before + {count} - 1, (threads(), before)
    assert engine.stats()["cpu_threads"] == {count}
    """
    )
    check_python(program, **NO_BLAS_THREADS)


def test_submit_adds_the_scheduler_and_close_ends_it() -> None:
    program = (
        SET_UP
        + """
    engine = moerun.Engine(cpu_threads=1)
    layer = layer_of(engine)
    layer.submit(x, ids, weights).wait()
    assert threads() == before + 1, threads()
    engine.close()
    for _ in range(200):  # a thread that was joined may still be listed for a moment
        if threads() == before:
            break
        time.sleep(0.01)
    assert threads() == before, threads()
    """
    )
    check_python(program, **NO_BLAS_THREADS)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_idle_threads_use_no_time(count: int) -> None:
    """One tick is 10 ms; a thread that spins would use about 50 of them while we sleep."""
    program = (
        SET_UP
        + f"""
    engine = moerun.Engine(cpu_threads={count})
    layer = layer_of(engine)
    for _ in range(5):
        layer.forward(x, ids, weights)
        layer.submit(x, ids, weights).wait()
    time.sleep(0.2)
    start = cpu_ticks()
    time.sleep(0.5)
    used = cpu_ticks() - start
    assert used <= 5, f"{{used}} ticks in half a second of idleness"
    """
    )
    check_python(program, **NO_BLAS_THREADS)


def test_every_thread_takes_part() -> None:
    """The timeline has one lane for each thread."""
    program = (
        SET_UP
        + """
    import json, tempfile
    engine = moerun.Engine(cpu_threads=3, isa="ref")
    layer = layer_of(engine)
    for _ in range(20):
        layer.forward(x, ids, weights)
    with tempfile.NamedTemporaryFile() as file:
        engine.trace(file.name)
        events = json.load(open(file.name))["traceEvents"]
    lanes = {e["tid"] for e in events if e["ph"] == "X"}
    assert len(lanes) == 3, lanes
    """
    )
    check_python(program, **NO_BLAS_THREADS)


def test_by_default_all_usable_cores() -> None:
    program = (
        SET_UP
        + """
    assert moerun.Engine().stats()["cpu_threads"] <= len(os.sched_getaffinity(0))
    """
    )
    check_python(program)


def test_affinity_is_respected() -> None:
    program = """
    import os
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import moerun
    assert moerun.Engine().stats()["cpu_threads"] == 1
    """
    check_python(program)


def test_torchs_threads_and_ours_share_one_pool() -> None:
    """torch's regions and ours use the same OpenMP runtime: the process has one libgomp."""
    program = (
        SET_UP
        + """
    import torch
    torch.set_num_threads(2)
    engine = moerun.Engine(cpu_threads=2)
    layer = layer_of(engine)
    a = torch.ones(600, 600)
    for _ in range(5):
        a @ a
        torch.relu(torch.ones(1 << 20))
        layer.forward(x, ids, weights)
    with open("/proc/self/maps") as maps:
        files = {line.split()[-1] for line in maps}
    runtimes = {f for f in files if any(name in f for name in ("libgomp", "libiomp", "libomp"))}
    assert len(runtimes) == 1, runtimes
    """
    )
    check_python(program)
