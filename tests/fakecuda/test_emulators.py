"""The kernels that the stand-in driver emulates, against the float64 oracle: what the tests of the GPU path
lean on must itself be right. Every format, split sums, parts of experts, the CPU's share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

import oracle
from blob_oracle import FORMATS
from emulated_device import EmulatedDevice
from expert_layers import ACTIVATIONS, DTYPES, random_batch, random_experts
from fake_driver import FakeDriver, build_fake_driver
from moerun.kernels.contract import INTER_STEP, KernelShape, description
from moerun.kernels.lists import step_lists
from quantised import memory_of, quantise

EXPERTS, TOP_K, TOKENS = 4, 2, 5
TILE_ROWS, TILE_TOKENS = 16, 2
X_DTYPES = ("bf16", "fp16", "fp32")


@pytest.fixture
def device() -> Iterator[EmulatedDevice]:
    library = build_fake_driver()
    fake = FakeDriver(library)
    fake.reset()
    device = EmulatedDevice(library)
    yield device
    device.close()
    assert fake.violations() == []
    assert fake.leaks() == 0


class Layer:
    """A layer with random experts, on the device; slots in another order than experts."""

    def __init__(self, device: EmulatedDevice, shape: KernelShape) -> None:
        self.device, self.shape = device, shape
        experts = random_experts(
            EXPERTS, shape.hidden, shape.inter, activation=shape.activation, bias=shape.bias, seed=3
        )
        biases = (experts.gate_bias, experts.up_bias, experts.down_bias)
        memory = memory_of(
            experts.gate.numpy(),
            experts.up.numpy(),
            experts.down.numpy(),
            tuple(bias.numpy() for bias in biases if bias is not None) if shape.bias else None,
        )
        blobs = quantise(memory, shape.hidden, shape.inter, shape.weight_format)
        weights = [blobs.weights(e) for e in range(EXPERTS)]
        stacked = {
            name: torch.from_numpy(np.stack([w[name] for w in weights])) for name in ("gate", "up", "down")
        }
        self.experts = replace(experts, **stacked)
        self.slots = {e: EXPERTS - 1 - e for e in range(EXPERTS)}
        order = sorted(self.slots, key=self.slots.__getitem__)
        self.slab = device.upload(np.stack([blobs.blobs[e] for e in order]))
        self.batch = random_batch(TOKENS, shape.hidden, EXPERTS, TOP_K, DTYPES[shape.x_dtype])

    def expected(self) -> oracle.Expected:
        compute = DTYPES[self.shape.compute_dtype]
        narrow = oracle.Narrow(activations=compute, weights=compute)
        return oracle.layer(self.experts, self.batch.x, self.batch.ids, self.batch.weights, narrow=narrow)

    def run(
        self,
        split: int = 1,
        slots: dict[int, int] | None = None,
        ranges: dict[int, tuple[int, int]] | None = None,
        cpu: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One step of the experts in `slots`."""
        shape, device, batch = self.shape, self.device, self.batch
        slots = self.slots if slots is None else slots
        lists = step_lists(
            batch.ids.numpy(), batch.weights.numpy(), slots, shape.inter, TILE_TOKENS, split, ranges
        )
        pairs, tiles = lists.pairs, device.upload(lists.tiles)
        token, weight = device.upload(lists.pair_token), device.upload(lists.pair_weight)
        x = device.upload(batch.x.view(torch.uint8).numpy())
        h = device.allocate(pairs * shape.h_stride * 4)
        partial = device.allocate(pairs * split * 2 * shape.h_stride * 4)
        y = device.allocate(pairs * split * shape.y_stride * 4)
        out = device.allocate(TOKENS * shape.hidden * 4)

        def launch(function: str, rows: int, count: int, depth: int, *values: int) -> None:
            image = description(shape, function, TILE_ROWS, TILE_TOKENS, split)
            device.launch(image, function, (-(-rows // TILE_ROWS), count, depth), *values)

        first = h if split == 1 else partial
        launch("moerun_gate_up", shape.inter, len(lists.tiles), split, x, self.slab, first, tiles, token)
        if split > 1:
            launch("moerun_activate", shape.inter, len(lists.tiles), 1, partial, self.slab, h, tiles)
        launch("moerun_down", shape.hidden, len(lists.tiles), split, h, self.slab, y, tiles, weight)
        rows = device.upload(lists.token_rows)
        share = 0 if cpu is None else device.upload(cpu.numpy())
        launch("moerun_combine", shape.hidden, TOKENS, 1, y, rows, share, out, int(cpu is not None))
        raw = device.download(out, TOKENS * shape.hidden * batch.x.element_size())
        return torch.frombuffer(bytearray(raw), dtype=batch.x.dtype).reshape(TOKENS, shape.hidden)


@pytest.mark.parametrize(("number", "weight_format"), list(enumerate(FORMATS)))
def test_equals_float64(device: EmulatedDevice, number: int, weight_format: str) -> None:
    """Dtypes of x, activations, biases and splits take turns."""
    shape = KernelShape(
        hidden=(72, 130, 288)[number % 3],
        inter=(40, 33, 160)[number % 3],
        top_k=TOP_K,
        weight_format=weight_format,
        x_dtype=X_DTYPES[number // 2 % 3],
        activation=ACTIVATIONS[number % 5],
        bias=number % 2 == 0,
    )
    layer = Layer(device, shape)
    for split in (1, 3):
        layer.expected().check(layer.run(split))


@pytest.mark.parametrize("weight_format", ["bf16", "int4_g128", "int8_g128", "fp8_b128"])
def test_parts_of_an_expert_add_up(device: EmulatedDevice, weight_format: str) -> None:
    """The one part is added as the CPU's would be."""
    inter = 2 * INTER_STEP + 8
    layer = Layer(device, KernelShape(72, inter, TOP_K, weight_format, "fp32", bias=True))
    first = layer.run(
        slots={e: layer.slots[e] for e in (0, 1)}, ranges={0: (0, INTER_STEP), 1: (0, 2 * INTER_STEP)}
    )
    both = layer.run(split=2, ranges={0: (INTER_STEP, inter), 1: (2 * INTER_STEP, inter)}, cpu=first)
    layer.expected().check(both)


def test_a_slot_that_was_never_filled_gives_nan(device: EmulatedDevice) -> None:
    layer = Layer(device, KernelShape(72, 40, TOP_K, "bf16", "fp32"))
    layer.slab = device.allocate(1 << 20)
    assert layer.run().isnan().all()
