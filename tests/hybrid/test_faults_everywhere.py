"""Every call to the driver fails once, one at a time, all along a run of a Python engine: create, load, step,
submit, evict, close. tests/native/hybrid_faults_test.cc does the same below the engine, with predictions."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import expert_layers
import moerun
import oracle
from fake_driver import FakeDriver

EXPERTS, HIDDEN, INTER, TOP_K = 4, 24, 40, 2
NOT_SUPPORTED, ILLEGAL_ADDRESS = 801, 700  # CUresult
POLLS = ("cuEventQuery", "cuCtxSetCurrent")  # made as often as something takes
# What gives back, an optional question, and a refusal to pin.
MAY_BE_SILENT = (
    *("cuMemFree_v2", "cuMemFreeHost", "cuEventDestroy_v2", "cuStreamDestroy_v2", "cuModuleUnload"),
    *("cuDevicePrimaryCtxRelease_v2", "cuCtxPopCurrent_v2", "cuCtxPushCurrent_v2", "cuStreamSynchronize"),
    *("cuDeviceGetAttribute", "cuMemHostAlloc"),
)


class Script:
    """One run. Every result is right or an exception."""

    def __init__(self, experts: oracle.Experts) -> None:
        self.experts = experts
        self.batches = [expert_layers.random_batch(1 + n, HIDDEN, EXPERTS, TOP_K, seed=n) for n in range(3)]
        self.expected = [oracle.layer(experts, *batch) for batch in self.batches]

    def run(self) -> list[Exception]:
        errors: list[Exception] = []
        try:
            cache = 3 * expert_layers.blob_bytes(self.experts)
            engine = moerun.Engine(device="cuda", cpu_threads=1, schedule="ondemand", gpu_cache=cache)
        except moerun.MoerunError as error:
            return [error]
        with engine:
            try:
                spec = expert_layers.spec_of(self.experts, TOP_K)
                layer = engine.add_layer(spec, expert_layers.tensors_of(self.experts))
            except moerun.MoerunError as error:
                return [error]
            for batch, expected in zip(self.batches, self.expected, strict=True):
                for step in (layer.forward, lambda *batch: layer.submit(*batch).wait()):
                    try:
                        expected.check(step(*batch))
                    except moerun.MoerunError as error:
                        errors.append(error)
        return errors


def positions(gpu: FakeDriver) -> list[tuple[str, int]]:
    """(function, number of the call) of every call since the last reset, polls excepted."""
    table = (Path(__file__).parents[2] / "cuda/driver_table.h").read_text()
    functions = re.findall(r"X\(\w+, (cu\w+)", table)
    assert len(functions) > 40
    return [(f, n) for f in functions if f not in POLLS for n in range(1, gpu.calls(f) + 1)]


@pytest.fixture
def quick_collection() -> Iterator[None]:
    """Leaves what is there already out of the collections of garbage below."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("code", [NOT_SUPPORTED, ILLEGAL_ADDRESS])
def test_a_call_that_fails_is_told_once_and_leaves_nothing_behind(
    gpu: FakeDriver, code: int, quick_collection: None
) -> None:
    script = Script(expert_layers.random_experts(EXPERTS, HIDDEN, INTER, seed=3))
    assert script.run() == []
    gc.collect()
    for function, n in positions(gpu):
        gpu.reset()
        gpu.fail(function, n, code)
        errors = [str(error) for error in script.run()]
        failed = gpu.failed()
        gpu.reset()
        if code == NOT_SUPPORTED:
            assert len(errors) <= 1, (function, n, errors)
        if errors and (code == NOT_SUPPORTED or function not in MAY_BE_SILENT):
            assert f"{function} returned " in errors[0], n
        elif errors:
            assert "CUDA_ERROR_ILLEGAL_ADDRESS" in errors[0], (function, n)
        else:
            assert failed is None or function in MAY_BE_SILENT, n
        gc.collect()
        assert gpu.leaks() == 0, (function, n)
    assert script.run() == []
