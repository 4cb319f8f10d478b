"""Layer.pinned keeps experts in the GPU's cache, and never a batch from running."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import expert_layers
import moerun
import oracle
from fake_driver import FakeDriver

EXPERTS, HIDDEN, INTER, TOP_K = 8, 24, 40, 2


class Rig:
    """A layer whose cache holds three experts, and batches that route one token."""

    def __init__(self, engine: moerun.Engine) -> None:
        self.experts = expert_layers.random_experts(EXPERTS, HIDDEN, INTER, seed=2)
        self.engine = engine
        self.layer = engine.add_layer(
            expert_layers.spec_of(self.experts, TOP_K), expert_layers.tensors_of(self.experts)
        )

    def use(self, *ids: int) -> int:
        """Runs a token with these experts; how many of them were missing in the cache."""
        x = torch.randn(1, HIDDEN, generator=torch.Generator().manual_seed(sum(ids)))
        batch = (x, torch.tensor([ids]), torch.full((1, len(ids)), 0.5))
        before = self.engine.stats()["gpu"]["misses"]
        oracle.layer(self.experts, *batch).check(self.layer.forward(*batch))
        return self.engine.stats()["gpu"]["misses"] - before


@pytest.fixture
def rig(gpu: FakeDriver) -> Iterator[Rig]:
    blob = expert_layers.blob_bytes(expert_layers.random_experts(EXPERTS, HIDDEN, INTER))
    options = {"schedule": "ondemand", "cache": "lru", "gpu_cache": 3 * blob}
    with moerun.Engine(device="cuda", cpu_threads=1, **options) as engine:
        made = Rig(engine)
        yield made
    del made.engine, made.layer  # pytest keeps what a fixture gave


def test_a_pinned_expert_is_not_evicted(rig: Rig) -> None:
    assert rig.use(0, 1) == 2
    with rig.layer.pinned(torch.tensor([[0, -1, EXPERTS]])):
        for expert in (2, 3, 4, 5):
            rig.use(expert, expert)
        assert rig.use(0, 0) == 0
    for expert in (2, 3, 4, 5):
        rig.use(expert, expert)
    assert rig.use(0, 0) == 1


def test_blocks_within_blocks(rig: Rig) -> None:
    rig.use(0, 1)
    with rig.layer.pinned(torch.tensor([0])):
        with rig.layer.pinned(torch.tensor([0, 1])):
            rig.use(2, 3)
        for expert in (4, 5, 6):
            rig.use(expert, expert)
        assert rig.use(0, 0) == 0


def test_a_batch_takes_the_slots_that_it_needs(rig: Rig) -> None:
    rig.use(0, 1)
    rig.use(2, 2)
    with rig.layer.pinned(torch.arange(EXPERTS)):
        assert rig.use(3, 4) == 2  # all three slots are kept
        assert rig.use(5, 6) == 2
    assert rig.use(0, 1) == 2


def test_an_error_or_a_closed_engine_in_the_block(rig: Rig, gpu: FakeDriver) -> None:
    rig.use(0, 1)
    with rig.layer.pinned(torch.tensor([0, 1])):
        gpu.fail("cuLaunchKernel", 1, 1)
        with pytest.raises(moerun.GpuError):
            rig.use(0, 1)
        assert rig.use(0, 1) == 2  # the cache was emptied
    with rig.layer.pinned(torch.tensor([0])):
        rig.engine.close()
