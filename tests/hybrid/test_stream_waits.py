"""Batches on the device that the caller does not wait for: its stream waits, for what is not enqueued yet.

The stand-in driver finds what a stream does without an order, a value that nobody writes, and memory that is
allocated while a stream waits for the allocating thread.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import expert_layers
import moerun
import oracle
from emulated_device import DeviceArray, EmulatedDevice
from fake_driver import FakeDriver, fake_driver_without
from oracle import Experts

EXPERTS, HIDDEN, INTER, TOP_K, LAYERS = 6, 24, 264, 3, 2
INVALID_VALUE, OUT_OF_MEMORY = 1, 2  # CUresult
MOST_TOKENS = 5


@pytest.fixture(scope="module")
def experts() -> list[Experts]:
    return [expert_layers.random_experts(EXPERTS, HIDDEN, INTER, bias=True, seed=n) for n in range(LAYERS)]


@pytest.fixture
def device(gpu: FakeDriver) -> Iterator[EmulatedDevice]:
    emulated = EmulatedDevice(gpu.library)
    yield emulated
    emulated.close()


class OnDevice:
    def __init__(self, device: EmulatedDevice, batch: expert_layers.Routed, stream: int) -> None:
        self._device = device
        self.arrays = [device.put(np.asarray(a), stream) for a in batch]
        self.out = device.put(np.full(self.arrays[0].shape, np.nan, np.float32), stream)

    def result(self, stream: int) -> torch.Tensor:
        return torch.from_numpy(self._device.get(self.out, stream).copy())


def random_batch(tokens: int, seed: int = 0) -> expert_layers.Routed:
    return expert_layers.random_batch(tokens, HIDDEN, EXPERTS, TOP_K, seed=seed)


def engine_with(experts: list[Experts], slots: int = 4, **options: Any) -> tuple[moerun.Engine, list]:
    cache = slots * expert_layers.blob_bytes(experts[0])
    engine = moerun.Engine(device="cuda", cpu_threads=1, gpu_cache=cache, **options)
    spec = expert_layers.spec_of(experts[0], TOP_K)
    return engine, [engine.add_layer(spec, expert_layers.tensors_of(e)) for e in experts]


def warm_up(engine: moerun.Engine, layers: list, device: EmulatedDevice, stream: int) -> None:
    """A batch for each layer: memory is there then, and the caller has waited."""
    for layer in layers:
        there = OnDevice(device, random_batch(MOST_TOKENS, 99), stream)
        layer.forward(*there.arrays, out=there.out)
    engine.synchronize()
    # The first that could be waited for finds out whether this stream may.
    there = OnDevice(device, random_batch(1, 98), stream)
    layers[0].forward(*there.arrays, out=there.out)
    engine.synchronize()


@pytest.mark.parametrize("schedule", ["cpu", "ondemand", "static", "balanced"])
@pytest.mark.parametrize("store", ["pinned", "staged"])
def test_many_layers_are_given_before_anything_runs(
    gpu: FakeDriver, device: EmulatedDevice, experts: list[Experts], schedule: str, store: str
) -> None:
    """The stream is held up, so no layer can begin; each takes the former one's result."""
    stream = device.new_stream()
    engine, layers = engine_with(experts, schedule=schedule, store=store)
    with engine:
        warm_up(engine, layers, device, stream)
        x, ids, weights = random_batch(2)
        there = OnDevice(device, (x, ids, weights), stream)
        outs = [device.put(np.zeros(x.shape, np.float32), stream) for _ in range(8)]
        let_go = device.hold(stream)
        state = there.arrays[0]
        handles = []
        for n, out in enumerate(outs):
            handles.append(layers[n % LAYERS].submit(state, *there.arrays[1:], out=out))
            assert handles[-1].wait() is out
            state = out
        assert not any(handle.done() for handle in handles)
        let_go()
        for n, out in enumerate(outs):
            got = torch.from_numpy(device.get(out, stream).copy())
            oracle.layer(experts[n % LAYERS], x, ids, weights).check(got)
            x = got
        for handle in handles:
            handle.synchronize()
            assert handle.done()
    assert gpu.violations() == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    schedule=st.sampled_from(("cpu", "ondemand", "balanced")),
    slots=st.integers(TOP_K, 2 * EXPERTS),
    script=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, LAYERS - 1), st.integers(0, 40)), max_size=10
    ),
)
def test_any_order_of_batches_equals_the_oracle(
    gpu: FakeDriver, device: EmulatedDevice, experts: list[Experts], schedule: str, slots: int, script: list
) -> None:
    """Of any size, on the host or in two streams; larger ones than before need memory in between."""
    gpu.reset()
    streams = [device.new_stream(), device.new_stream()]
    pending = []
    engine, layers = engine_with(experts, slots, schedule=schedule)
    with engine:
        for seed, (where, layer, tokens) in enumerate(script):
            batch = random_batch(tokens, seed)
            expected = oracle.layer(experts[layer], *batch)
            if where == 2:
                expected.check(layers[layer].forward(*batch))
                continue
            there = OnDevice(device, batch, streams[where])
            layers[layer].forward(*there.arrays, out=there.out)
            layers[1 - layer].hint(batch.ids)
            pending.append((expected, there, streams[where]))
        for expected, there, stream in pending:
            expected.check(there.result(stream))
    assert gpu.violations() == []


def test_a_result_that_nobody_waits_for_is_found(
    gpu: FakeDriver, device: EmulatedDevice, experts: list[Experts]
) -> None:
    mine, other = device.new_stream(), device.new_stream()
    engine, layers = engine_with(experts, schedule="ondemand")
    with engine:
        warm_up(engine, layers, device, mine)
        there = OnDevice(device, random_batch(2), mine)
        let_go = device.hold(mine)
        layers[0].submit(*there.arrays, mine, out=there.out)
        device.get(there.out, other)
        let_go()
        there.result(mine)
    assert any("cuMemcpyDtoHAsync_v2" in text for text in gpu.violations())
    gpu.reset()


@pytest.mark.parametrize("how", ["never", "no function", "one queue"])
def test_where_streams_cannot_wait_the_caller_does(
    gpu: FakeDriver,
    device: EmulatedDevice,
    experts: list[Experts],
    how: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"stream_wait": "never"} if how == "never" else {}
    if how == "no function":
        library = fake_driver_without("cuStreamWaitValue32_v2", tmp_path)
        monkeypatch.setenv("MOERUN_LIBCUDA", str(library))
        gpu, device = FakeDriver(library), EmulatedDevice(library)
    if how == "one queue":
        monkeypatch.setenv("FAKECUDA_CONNECTIONS", "1")
        gpu.reset()
    stream = device.new_stream()
    engine, layers = engine_with(experts, **options)
    with engine:
        warm_up(engine, layers, device, stream)
        batch = random_batch(2)
        there = OnDevice(device, batch, stream)
        handle = layers[0].submit(*there.arrays, out=there.out)
        assert not handle._job.stream_waits
        handle.wait()
        oracle.layer(experts[0], *batch).check(there.result(stream))
    assert gpu.violations() == []
    if how == "no function":
        device.close()


def test_a_stream_that_is_captured_is_refused(
    gpu: FakeDriver, device: EmulatedDevice, experts: list[Experts]
) -> None:
    stream = device.new_stream()
    engine, layers = engine_with(experts)
    with engine:
        there = OnDevice(device, random_batch(2), stream)
        device.capture(stream, True)
        with pytest.raises(RuntimeError, match="cannot be captured in a CUDA graph"):
            layers[0].forward(*there.arrays, out=there.out)
        device.capture(stream, False)
        layers[0].forward(*there.arrays, out=there.out)


def test_closing_finishes_what_streams_wait_for(
    gpu: FakeDriver, device: EmulatedDevice, experts: list[Experts]
) -> None:
    stream = device.new_stream()
    engine, layers = engine_with(experts)
    warm_up(engine, layers, device, stream)
    batch = random_batch(2)
    there = [OnDevice(device, batch, stream) for _ in range(4)]
    for each in there:
        layers[0].forward(*each.arrays, out=each.out)
    engine.close()
    for each in there:
        oracle.layer(experts[0], *batch).check(each.result(stream))
    assert gpu.violations() == []


class TestErrors:
    """What goes wrong lets the stream go, leaves NaN, and is raised once."""

    @pytest.fixture
    def stream(self, device: EmulatedDevice) -> int:
        return device.new_stream()

    @pytest.fixture
    def warm(self, device: EmulatedDevice, experts: list[Experts], stream: int) -> Iterator[list]:
        """An engine and its first layer, in a list that is emptied at the end: pytest keeps its values."""
        engine, layers = engine_with(experts, schedule="ondemand")
        given = [engine, layers[0]]
        warm_up(engine, layers, device, stream)
        del layers
        yield given
        given.clear()
        engine.close()

    def submit_failing(
        self, gpu: FakeDriver, device: EmulatedDevice, layer: Any, stream: int, code: int = INVALID_VALUE
    ) -> tuple[OnDevice, Any]:
        there = OnDevice(device, random_batch(2), stream)
        gpu.fail("cuLaunchKernel", 1, code)
        handle = layer.submit(*there.arrays, out=there.out)
        assert handle._job.stream_waits
        assert there.result(stream).isnan().all()
        return there, handle

    @pytest.mark.parametrize("next_call", ["forward", "submit", "synchronize", "on the host"])
    def test_the_next_call_raises_it(
        self,
        gpu: FakeDriver,
        device: EmulatedDevice,
        experts: list[Experts],
        stream: int,
        warm: list,
        next_call: str,
    ) -> None:
        engine, layer = warm
        self.submit_failing(gpu, device, layer, stream)
        batch = random_batch(2, 1)
        there = OnDevice(device, batch, stream)
        calls = {
            "forward": lambda: layer.forward(*there.arrays, out=there.out),
            "submit": lambda: layer.submit(*there.arrays, out=there.out),
            "synchronize": engine.synchronize,
            "on the host": lambda: layer.forward(*batch),
        }
        if next_call in ("forward", "submit"):
            engine.start()  # waits until the batch is done, and tells nothing
        with pytest.raises(moerun.GpuError, match=r"an earlier batch has gone wrong .*cuLaunchKernel"):
            calls[next_call]()
        layer.forward(*there.arrays, out=there.out)
        oracle.layer(experts[0], *batch).check(there.result(stream))
        engine.synchronize()

    def test_the_handle_raises_it(
        self, gpu: FakeDriver, device: EmulatedDevice, stream: int, warm: list
    ) -> None:
        engine, layer = warm
        handle = self.submit_failing(gpu, device, layer, stream)[1]
        with pytest.raises(moerun.GpuError, match=r"^launching a kernel: cuLaunchKernel"):
            handle.synchronize()
        with pytest.raises(moerun.GpuError, match=r"^launching a kernel: cuLaunchKernel"):
            handle.wait()
        engine.synchronize()  # it has been told

    def test_memory_that_runs_out_is_given_back_by_the_next_batch(
        self, gpu: FakeDriver, device: EmulatedDevice, experts: list[Experts], stream: int, warm: list
    ) -> None:
        """Not by this one: freeing memory may wait for the stream that waits for it."""
        engine, layer = warm
        handle = self.submit_failing(gpu, device, layer, stream, OUT_OF_MEMORY)[1]
        with pytest.raises(moerun.GpuError, match="OUT_OF_MEMORY"):
            handle.synchronize()
        assert engine.stats()["gpu"]["shrunk"] == 0
        batch = random_batch(2, 1)
        there = OnDevice(device, batch, stream)
        gpu.fail("cuLaunchKernel", 1, OUT_OF_MEMORY)
        layer.forward(*there.arrays, out=there.out)
        oracle.layer(experts[0], *batch).check(there.result(stream))
        assert engine.stats()["gpu"]["shrunk"] == 1
        assert gpu.violations() == []

    def test_closing_logs_it(
        self,
        gpu: FakeDriver,
        device: EmulatedDevice,
        stream: int,
        warm: list,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        engine, layer = warm
        self.submit_failing(gpu, device, layer, stream)
        with caplog.at_level(logging.ERROR, "moerun"):
            engine.close()
        assert "cuLaunchKernel" in caplog.text

    def test_every_call_of_a_step_fails_once(
        self, gpu: FakeDriver, device: EmulatedDevice, experts: list[Experts], stream: int, warm: list
    ) -> None:
        engine, layer = warm
        batch = random_batch(2, 3)
        expected = oracle.layer(experts[0], *batch)
        position = failed = 0
        while position < 300:
            position += 1
            there = OnDevice(device, batch, stream)
            gpu.reset()
            gpu.fail("*", position, INVALID_VALUE)
            errors = []
            for call in (lambda t=there: layer.forward(*t.arrays, out=t.out), engine.synchronize):
                try:
                    call()
                except moerun.GpuError as error:
                    errors.append(error)
            name = gpu.failed()
            assert gpu.violations() == [], name
            gpu.reset()  # what was not reached
            if name is None:
                break
            failed += 1
            assert len(errors) <= 1, f"call {position}, {name}: {errors}"
            result = there.result(stream)
            if not errors:
                expected.check(result)
            engine.synchronize()
            warm_up(engine, [layer], device, stream)
        assert failed > 30
        there = OnDevice(device, batch, stream)
        layer.forward(*there.arrays, out=there.out)
        expected.check(there.result(stream))


def test_arrays_live_until_the_batch_is_done(
    gpu: FakeDriver, device: EmulatedDevice, experts: list[Experts]
) -> None:
    import weakref

    class Mine(DeviceArray):
        pass

    stream = device.new_stream()
    engine, layers = engine_with(experts)
    with engine:
        warm_up(engine, layers, device, stream)
        there = OnDevice(device, random_batch(2), stream)
        out = Mine(there.out.address, there.out.shape, there.out.dtype, stream)
        let_go = device.hold(stream)
        layers[0].forward(*there.arrays, out=out)
        seen = weakref.ref(out)
        del out
        assert seen() is not None
        let_go()
        engine.synchronize()
        layers[0].forward(*there.arrays, out=there.out)  # lets go of what is done
        assert seen() is None
