"""submit and wait: order, results, errors, many handles, many threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import expert_layers
import moerun
import oracle
from child_process import check_python


def test_wait_returns_what_forward_does(small) -> None:
    handle = small.layer.submit(*small.batch)
    assert torch.equal(handle.wait(), small.output)
    assert handle.done()


def test_waiting_twice_gives_the_same_result(small) -> None:
    handle = small.layer.submit(*small.batch)
    assert handle.wait() is handle.wait()


@pytest.mark.parametrize(
    "make", [torch.zeros, lambda shape: np.zeros(shape, np.float32)], ids=["torch", "numpy"]
)
def test_wait_copies_into_out(small, make) -> None:
    out = make((7, 24))
    assert small.layer.submit(*small.batch).wait(out) is out
    assert torch.equal(torch.as_tensor(out), small.output)


def test_many_handles_waited_for_in_any_order(small) -> None:
    batches = [expert_layers.random_batch(1 + n % 9, 24, 5, top_k=2, seed=n) for n in range(200)]
    handles = [small.layer.submit(*batch) for batch in batches]
    for n in [*range(100, 200), *reversed(range(100))]:
        oracle.layer(small.experts, *batches[n]).check(handles[n].wait())
    assert all(handle.done() for handle in handles)


def test_batches_run_in_the_order_of_submission(small) -> None:
    handles = [small.layer.submit(*small.batch) for _ in range(50)]
    handles[-1].wait()
    assert all(handle.done() for handle in handles)


def test_two_layers_and_forward_in_between(small) -> None:
    other_experts = expert_layers.random_experts(3, 30, 50, activation="relu2", seed=5)
    other = small.engine.add_layer(
        expert_layers.spec_of(other_experts), expert_layers.tensors_of(other_experts)
    )
    other_batch = expert_layers.random_batch(20, 30, 3, top_k=1)
    expected = oracle.layer(other_experts, *other_batch)
    handles = []
    for _ in range(20):
        handles.append((small.layer.submit(*small.batch), other.submit(*other_batch)))
        assert torch.equal(small.layer.forward(*small.batch), small.output)
    for one, two in handles:
        assert torch.equal(one.wait(), small.output)
        expected.check(two.wait())


def test_an_error_comes_out_of_wait_and_the_engine_stays_usable() -> None:
    """The workspace of a batch does not fit into the address space that the process may have."""
    printed = check_python(
        """
        import resource
        import numpy as np
        import moerun

        hidden = 1 << 16
        engine = moerun.Engine(cpu_threads=1)
        ones = np.ones((1, 2, hidden), np.float16), np.ones((1, hidden, 1), np.float16)
        layer = engine.add_layer(moerun.LayerSpec(1, hidden, 1, top_k=1, activation="relu2"),
                                 {"gate_up": ones[0] / 256, "down": ones[1]})

        def batch(tokens):
            x = np.broadcast_to(np.ones((1, hidden), np.float16) / 256, (tokens, hidden))
            return x, np.zeros((tokens, 1), np.int32), np.ones((tokens, 1), np.float32)

        expected = layer.forward(*batch(2))
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        tokens = 16384  # out in fp16: 2 GiB; sums in fp32: 4 GiB, and x in fp32 as well
        resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 30), resource.RLIM_INFINITY))
        handle = layer.submit(*batch(tokens))
        for attempt in range(2):
            try:
                handle.wait()
            except MemoryError:
                print("MemoryError")
        try:
            layer.forward(*batch(tokens))
        except MemoryError:
            print("MemoryError")
        assert (layer.forward(*batch(2)) == expected).all()
        assert (layer.submit(*batch(2)).wait() == expected).all()
        assert engine.stats()["layers"][0]["batches"] == 3
        print("usable")
        """
    )
    assert printed == "MemoryError\nMemoryError\nMemoryError\nusable\n"


def test_several_python_threads_at_once(small) -> None:
    batches = [expert_layers.random_batch(1 + n % 20, 24, 5, top_k=3, seed=n) for n in range(60)]
    with moerun.Engine(cpu_threads=2) as engine:
        layer = engine.add_layer(small.layer.spec, expert_layers.tensors_of(small.experts))

        def use(n: int) -> torch.Tensor:
            return layer.forward(*batches[n]) if n % 2 else layer.submit(*batches[n]).wait()

        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(use, range(60)))
    for batch, result in zip(batches, results, strict=True):
        oracle.layer(small.experts, *batch).check(result)


def test_two_engines_at_once(small) -> None:
    results: dict[int, list[torch.Tensor]] = {1: [], 3: []}

    def use(threads: int) -> None:
        with moerun.Engine(cpu_threads=threads) as engine:
            layer = engine.add_layer(small.layer.spec, expert_layers.tensors_of(small.experts))
            results[threads] += [layer.forward(*small.batch) for _ in range(100)]
            assert engine.stats()["cpu_threads"] == threads

    users = [threading.Thread(target=use, args=(threads,)) for threads in results]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert all(len(r) == 100 and all(torch.equal(y, small.output) for y in r) for r in results.values())


def test_close_finishes_what_was_submitted(small) -> None:
    handles = [small.layer.submit(*small.batch) for _ in range(100)]
    small.engine.close()
    assert all(handle.done() for handle in handles)
    assert all(torch.equal(handle.wait(), small.output) for handle in handles)


def test_close_from_several_threads_while_others_compute() -> None:
    """Calls either give the right result or say that the engine is closed; nothing hangs."""
    check_python(
        """
        import threading
        from concurrent.futures import ThreadPoolExecutor
        import torch
        import expert_layers, moerun

        experts = expert_layers.random_experts(5, 24, 12, seed=31)
        batch = expert_layers.random_batch(7, 24, 5, top_k=2, seed=32)

        def compute(layer, expected, started):
            started.wait()
            while True:
                try:
                    pending = layer.submit(*batch)
                    assert torch.equal(layer.forward(*batch), expected)
                except RuntimeError as error:
                    assert "closed" in str(error)
                    return
                assert torch.equal(pending.wait(), expected)

        def close(engine, started):
            started.wait()
            engine.close()

        for _ in range(30):
            engine = moerun.Engine(cpu_threads=2)
            layer = engine.add_layer(expert_layers.spec_of(experts, 2), expert_layers.tensors_of(experts))
            expected = layer.forward(*batch)
            started = threading.Barrier(5)
            with ThreadPoolExecutor(5) as pool:
                work = [pool.submit(compute, layer, expected, started) for _ in range(2)]
                work += [pool.submit(close, engine, started) for _ in range(3)]
                for done in work:
                    done.result()
        """
    )


def test_ctrl_c_interrupts_a_wait() -> None:
    """SIGINT arrives while work that takes minutes is going on; the reference kernels are slow enough."""
    check_python(
        """
        import os, signal, threading
        import numpy as np
        import moerun

        size, tokens = 4096, 4096
        weights = np.zeros((1, 2 * size, size), np.float32)
        engine = moerun.Engine(cpu_threads=1, isa="ref")
        spec = moerun.LayerSpec(1, size, size, top_k=1)
        layer = engine.add_layer(spec, {"gate_up": weights, "down": weights[:, :size]})
        handle = layer.submit(np.zeros((tokens, size), np.float32), np.zeros((tokens, 1), np.int64),
                              np.zeros((tokens, 1), np.float32))
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            handle.wait()
        except KeyboardInterrupt:
            assert not handle.done()
            os._exit(0)  # nobody waits for the minutes
        raise SystemExit("was not interrupted")
        """
    )
