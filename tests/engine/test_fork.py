"""Processes that fork: an engine does not come along and says so; a new one works; nothing hangs."""

from __future__ import annotations

import pytest

from child_process import check_python

SET_UP = """
    import gc, os, signal, sys
    {imports}
    import numpy as np
    import moerun

    rng = np.random.default_rng(0)
    tensors = {{"gate_up": rng.normal(size=(4, 128, 96)).astype(np.float32) / 10,
               "down": rng.normal(size=(4, 96, 64)).astype(np.float32) / 10}}
    x = rng.normal(size=(40, 96)).astype(np.float32)
    ids = rng.integers(0, 4, (40, 2))
    weights = rng.normal(size=(40, 2)).astype(np.float32)

    def layer_of(engine):
        return engine.add_layer(moerun.LayerSpec(4, 96, 64, top_k=2), tensors)

    def in_child(work):
        process = os.fork()
        if process == 0:
            signal.alarm(20)  # ends a child that hangs
            status = 1
            try:
                work()
                status = 0
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        status = os.waitpid(process, 0)[1]
        assert status == 0, f"the child ended with {{status}}; {{int(signal.SIGALRM)}} means that it hung"
    """
WITH_TORCH = SET_UP.format(imports="import torch\n    torch.ones(1000, 1000) @ torch.ones(1000, 1000)")
WITHOUT_TORCH = SET_UP.format(imports="")
PARENT = """
    engine = moerun.Engine(cpu_threads={threads})
    layer = layer_of(engine)
    expected = layer.forward(x, ids, weights)
    handle = layer.submit(x, ids, weights)
    handle.wait()
    """


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("set_up", [WITH_TORCH, WITHOUT_TORCH], ids=["torch", "plain"])
def test_the_parents_engine_says_that_it_cannot_be_used(set_up: str, threads: int) -> None:
    program = (
        set_up
        + PARENT.format(threads=threads)
        + """
    def work():
        for use in (
            lambda: layer.forward(x, ids, weights),
            lambda: layer.submit(x, ids, weights),
            lambda: layer_of(engine),
        ):
            try:
                use()
            except RuntimeError as error:
                message = str(error)
            assert "fork" in message and "create the engine in the child" in message, message
        assert handle.done() and (handle.wait() == expected).all()

    in_child(work)
    assert (layer.forward(x, ids, weights) == expected).all()
    assert (layer.submit(x, ids, weights).wait() == expected).all()
    """
    )
    check_python(program)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("set_up", [WITH_TORCH, WITHOUT_TORCH], ids=["torch", "plain"])
def test_an_engine_made_in_the_child_works(set_up: str, threads: int) -> None:
    program = (
        set_up
        + PARENT.format(threads=threads)
        + f"""
    def work():
        child_engine = moerun.Engine(cpu_threads={threads})
        child_layer = layer_of(child_engine)
        for _ in range(5):
            assert (child_layer.forward(x, ids, weights) == expected).all()
            assert (child_layer.submit(x, ids, weights).wait() == expected).all()
        # and its own child
        in_child(lambda: layer_of(moerun.Engine(cpu_threads={threads})).forward(x, ids, weights))
        child_engine.close()

    in_child(work)
    assert (layer.forward(x, ids, weights) == expected).all()
    """
    )
    check_python(program)


@pytest.mark.parametrize(
    "goodbye",
    ["engine.close()", "engine.close(); forget()", "forget()", "sys.exit(0)"],
    ids=["close", "close and forget", "forget", "exit"],
)
def test_the_child_may_drop_the_parents_engine(goodbye: str) -> None:
    """Its scheduler's thread, and who waits for what, stayed in the parent."""
    program = (
        WITHOUT_TORCH
        + PARENT.format(threads=2)
        + f"""
    def forget():
        global engine, layer, handle
        del engine, layer, handle
        gc.collect()

    process = os.fork()
    if process == 0:
        signal.alarm(20)
        {goodbye}
    else:
        status = os.waitpid(process, 0)[1]
        assert status == 0, f"the child ended with {{status}}; {{int(signal.SIGALRM)}} means that it hung"
        assert (layer.submit(x, ids, weights).wait() == expected).all()
    """
    )
    check_python(program)


def test_fork_while_another_thread_computes() -> None:
    """Locks may be held at that moment by threads that the child does not have."""
    program = (
        WITHOUT_TORCH
        + PARENT.format(threads=2)
        + """
    import threading
    stop = threading.Event()

    def keep_busy():
        while not stop.is_set():
            pending = layer.submit(x, ids, weights)
            layer.forward(x, ids, weights)
            pending.wait()

    busy = threading.Thread(target=keep_busy)
    busy.start()

    def work():
        try:
            engine.stats()
        except RuntimeError as error:
            assert "fork" in str(error)
        engine.close()
        assert (layer_of(moerun.Engine(cpu_threads=2)).forward(x, ids, weights) == expected).all()

    try:
        for _ in range(10):
            in_child(work)
    finally:
        stop.set()
        busy.join()
    """
    )
    check_python(program)


def test_multiprocessing_with_fork() -> None:
    program = (
        WITHOUT_TORCH
        + PARENT.format(threads=2)
        + """
    import multiprocessing

    def work(n):
        return layer_of(moerun.Engine(cpu_threads=1)).forward(x, ids, weights).sum()

    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(work, range(4)) == [expected.sum()] * 4
    """
    )
    check_python(program)
