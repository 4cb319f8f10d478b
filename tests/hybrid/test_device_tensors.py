"""Batches that lie on the device: read and written there, in the order of the caller's stream.

The stand-in driver finds every access that no event and no wait orders, whatever the timing was.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from gpu_counters import check_counters
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import expert_layers
import moerun
import oracle
from emulated_device import DeviceArray, EmulatedDevice
from fake_driver import FakeDriver
from oracle import Experts

EXPERTS, HIDDEN, INTER, TOP_K, LAYERS = 6, 24, 264, 3, 2
SCHEDULES = ("cpu", "ondemand", "static", "balanced")
INVALID_VALUE, ILLEGAL_ADDRESS, OUT_OF_MEMORY = 1, 700, 2  # CUresult


@pytest.fixture(scope="module")
def experts() -> list[Experts]:
    return [expert_layers.random_experts(EXPERTS, HIDDEN, INTER, bias=True, seed=n) for n in range(LAYERS)]


@pytest.fixture
def device(gpu: FakeDriver) -> Iterator[EmulatedDevice]:
    """What the caller does on the device, beside the engine."""
    emulated = EmulatedDevice(gpu.library)
    yield emulated
    emulated.close()


class OnDevice:
    """A batch there, and its result."""

    def __init__(self, device: EmulatedDevice, batch: expert_layers.Routed, stream: int) -> None:
        self._device = device
        self.x, self.ids, self.weights = (device.put(np.asarray(a), stream) for a in batch)
        self.out = device.put(np.full(self.x.shape, np.nan, self.x.dtype), stream)

    def __iter__(self) -> Iterator[DeviceArray]:
        return iter((self.x, self.ids, self.weights))

    def result(self, stream: int) -> torch.Tensor:
        return torch.from_numpy(self._device.get(self.out, stream).copy())


def engine_with(experts: list[Experts], slots: int = 4, **options: Any) -> moerun.Engine:
    cache = slots * expert_layers.blob_bytes(experts[0])
    return moerun.Engine(device="cuda", cpu_threads=1, gpu_cache=cache, **options)


def add_all(engine: moerun.Engine, experts: list[Experts]) -> list[moerun.Layer]:
    spec = expert_layers.spec_of(experts[0], TOP_K)
    return [engine.add_layer(spec, expert_layers.tensors_of(e)) for e in experts]


def random_batch(tokens: int, seed: int = 0) -> expert_layers.Routed:
    return expert_layers.random_batch(tokens, HIDDEN, EXPERTS, TOP_K, seed=seed)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_forward_is_ordered_in_the_stream_of_x(
    gpu: FakeDriver, device: EmulatedDevice, experts: list[Experts], schedule: str
) -> None:
    stream = device.new_stream()
    with engine_with(experts, schedule=schedule) as engine:
        layers = add_all(engine, experts)
        for seed, tokens in enumerate((1, 1, 5, 0, 1, 30)):
            batch = random_batch(tokens, seed)
            there = OnDevice(device, batch, stream)
            layer = seed % LAYERS
            assert layers[layer].forward(*there, out=there.out) is there.out
            oracle.layer(experts[layer], *batch).check(there.result(stream))
            layers[1 - layer].hint(batch.ids)
        check_counters(engine.stats(), layers[0]._core.expert_bytes)
    assert gpu.violations() == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    schedule=st.sampled_from(SCHEDULES),
    slots=st.integers(0, 2 * EXPERTS),
    script=st.lists(st.tuples(st.booleans(), st.integers(0, LAYERS - 1), st.integers(0, 5)), max_size=8),
)
def test_any_order_of_batches_on_host_and_device_equals_the_oracle(
    gpu: FakeDriver, device: EmulatedDevice, experts: list[Experts], schedule: str, slots: int, script: list
) -> None:
    gpu.reset()
    streams = [device.new_stream(), device.new_stream()]
    pending = []
    slots = max(slots, TOP_K) if schedule == "ondemand" else slots
    with engine_with(experts, slots, schedule=schedule) as engine:
        layers = add_all(engine, experts)
        for seed, (on_device, layer, tokens) in enumerate(script):
            batch = random_batch(tokens, seed)
            expected = oracle.layer(experts[layer], *batch)
            if not on_device:
                expected.check(layers[layer].forward(*batch))
                continue
            stream = streams[seed % 2]
            there = OnDevice(device, batch, stream)
            pending.append((expected, there, stream, layers[layer].submit(*there, stream, out=there.out)))
        for expected, there, stream, handle in pending:
            handle.wait()
            expected.check(there.result(stream))
    assert gpu.violations() == []


def test_the_caller_waits_for_nothing(
    gpu: FakeDriver, device: EmulatedDevice, experts: list[Experts], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No call of submit() and wait() stops the calling thread until the device is done: the stream waits."""
    stream = device.new_stream()
    with engine_with(experts, EXPERTS, schedule="ondemand") as engine:
        layer = add_all(engine, experts)[0]
        batch = random_batch(2)
        there = OnDevice(device, batch, stream)
        waits = gpu.calls("cuStreamWaitEvent")
        handle = layer.submit(*there, out=there.out)
        handle.wait()
        assert handle.done()
        assert gpu.calls("cuStreamWaitEvent") > waits
        assert gpu.calls("cuStreamSynchronize") == 0
        oracle.layer(experts[0], *batch).check(there.result(stream))


def test_a_stream_that_is_not_that_of_x_is_found(
    gpu: FakeDriver, device: EmulatedDevice, experts: list[Experts]
) -> None:
    """Nothing orders the engine's reading behind the copy of x: the caller named another stream."""
    mine, other = device.new_stream(), device.new_stream()
    with engine_with(experts, schedule="ondemand") as engine:
        layer = add_all(engine, experts)[0]
        there = OnDevice(device, random_batch(2), mine)
        layer.submit(*there, other, out=there.out).wait()
    assert any("cuMemcpyHtoDAsync_v2" in text for text in gpu.violations())
    gpu.reset()


def test_a_result_that_nobody_waited_for_is_found(
    gpu: FakeDriver, device: EmulatedDevice, experts: list[Experts], monkeypatch: pytest.MonkeyPatch
) -> None:
    """out is read in a stream that was not made to wait for it, while experts are still being copied."""
    mine, other = device.new_stream(), device.new_stream()
    with engine_with(experts, schedule="ondemand") as engine:
        layer = add_all(engine, experts)[0]
        there = OnDevice(device, random_batch(2), mine)
        monkeypatch.setenv("FAKECUDA_H2D_BYTES_PER_S", "500000")  # 0.15 s an expert
        gpu.reset()
        layer.submit(*there, mine, out=there.out).wait()
        device.get(there.out, other)
    assert any("moerun_combine" in text for text in gpu.violations())
    gpu.reset()


def test_memory_of_a_dropped_handle_is_used_again_in_order(
    gpu: FakeDriver, device: EmulatedDevice, experts: list[Experts]
) -> None:
    """Nobody waits for the first batch; x is overwritten when the engine has let go of it."""
    stream = device.new_stream()
    with engine_with(experts, schedule="ondemand") as engine:
        layer = add_all(engine, experts)[0]
        there = OnDevice(device, random_batch(2), stream)
        handle = layer.submit(*there, out=there.out)
        while not handle.done():
            pass
        del handle
        later = OnDevice(device, random_batch(2, 1), stream)
        layer.submit(*later, out=later.out).wait()  # lets go of the first, and orders the stream behind it
        device.overwrite(there.x, stream)
        oracle.layer(experts[0], *random_batch(2, 1)).check(later.result(stream))
    assert gpu.violations() == []


def test_submitting_again_and_again_makes_nothing_new(
    gpu: FakeDriver, device: EmulatedDevice, experts: list[Experts]
) -> None:
    stream = device.new_stream()
    with engine_with(experts, schedule="ondemand") as engine:
        layer = add_all(engine, experts)[0]
        there = OnDevice(device, random_batch(2), stream)
        for _ in range(3):
            layer.forward(*there, out=there.out)
            engine.synchronize()
        made = gpu.calls("cuEventCreate"), gpu.calls("cuMemAlloc_v2"), gpu.calls("cuMemHostAlloc")
        for _ in range(20):
            layer.forward(*there, out=there.out)
            engine.synchronize()
        assert made == (
            gpu.calls("cuEventCreate"),
            gpu.calls("cuMemAlloc_v2"),
            gpu.calls("cuMemHostAlloc"),
        )


@pytest.mark.parametrize(
    "call", ["cuLaunchKernel", "cuMemcpyDtoHAsync_v2", "cuStreamWaitEvent", "cuEventRecord"]
)
def test_an_error_comes_out_and_the_engine_goes_on(
    gpu: FakeDriver, device: EmulatedDevice, experts: list[Experts], call: str
) -> None:
    stream = device.new_stream()
    with engine_with(experts, schedule="ondemand") as engine:
        layer = add_all(engine, experts)[0]
        batch = random_batch(2)
        expected = oracle.layer(experts[0], *batch)
        there = OnDevice(device, batch, stream)
        layer.forward(*there, out=there.out)
        there = OnDevice(device, batch, stream)
        gpu.fail(call, 1, INVALID_VALUE)
        with pytest.raises(moerun.GpuError, match=rf"{call} returned CUDA_ERROR_INVALID_VALUE"):
            layer.submit(*there, out=there.out).synchronize()
        layer.forward(*there, out=there.out)
        expected.check(there.result(stream))
        expected.check(layer.forward(*batch))


def test_an_error_that_comes_late_is_raised_by_the_next_batch(
    gpu: FakeDriver, device: EmulatedDevice, experts: list[Experts]
) -> None:
    """The result was promised when the scheduler met it: asking for times is the last that it does."""
    stream = device.new_stream()
    with engine_with(experts, schedule="ondemand") as engine:
        layer = add_all(engine, experts)[0]
        batch = random_batch(2)
        there = OnDevice(device, batch, stream)
        gpu.fail("cuEventElapsedTime", 1, INVALID_VALUE)
        layer.forward(*there, out=there.out)
        with pytest.raises(moerun.GpuError, match=r"an earlier batch has gone wrong .*cuEventElapsedTime"):
            layer.forward(*batch)
        oracle.layer(experts[0], *batch).check(layer.forward(*batch))


def test_memory_that_runs_out(gpu: FakeDriver, device: EmulatedDevice, experts: list[Experts]) -> None:
    stream = device.new_stream()
    with engine_with(experts, schedule="ondemand") as engine:
        layer = add_all(engine, experts)[0]
        batch = random_batch(2)
        there = OnDevice(device, batch, stream)
        gpu.fail("cuMemAlloc_v2", 2, OUT_OF_MEMORY)
        layer.forward(*there, out=there.out)
        oracle.layer(experts[0], *batch).check(there.result(stream))
        assert engine.stats()["gpu"]["shrunk"] == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"out": None}, ValueError, "out is needed for an x that is no torch tensor"),
        ({"ids": np.zeros((2, TOP_K), np.int64)}, TypeError, "topk_ids must lie on the GPU as x does"),
        ({"stream": "mine"}, TypeError, "stream must be a handle"),
    ],
)
def test_what_does_not_fit(
    gpu: FakeDriver, device: EmulatedDevice, experts: list[Experts], change: dict, error: type, message: str
) -> None:
    stream = device.new_stream()
    with engine_with(experts) as engine:
        layer = add_all(engine, experts)[0]
        there = OnDevice(device, random_batch(2), stream)
        arguments = {"ids": there.ids, "stream": stream, "out": there.out} | change
        with pytest.raises(error, match=message):
            layer.submit(there.x, arguments["ids"], there.weights, arguments["stream"], arguments["out"])


def test_out_may_not_overlap_or_differ_in_shape(
    gpu: FakeDriver, device: EmulatedDevice, experts: list[Experts]
) -> None:
    stream = device.new_stream()
    with engine_with(experts) as engine:
        layer = add_all(engine, experts)[0]
        there = OnDevice(device, random_batch(2), stream)
        with pytest.raises(ValueError, match="not overlapping"):
            layer.forward(*there, out=there.x)
        with pytest.raises(ValueError, match=rf"out must be \[2, {HIDDEN}\]"):
            layer.forward(*there, out=there.weights)


def test_a_stream_for_arrays_in_host_memory_is_refused(gpu: FakeDriver, experts: list[Experts]) -> None:
    with (
        engine_with(experts) as engine,
        pytest.raises(ValueError, match="stream orders arrays on the engine's GPU"),
    ):
        add_all(engine, experts)[0].submit(*random_batch(1), stream=1)
