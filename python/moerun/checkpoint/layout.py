"""The ways in which a layer's experts are spread over tensors, and where each expert's matrices then begin.

A layout turns tensor names into addresses and strides, so that every way is read in place. `families` lists
which layouts a family is published in; `checkpoint` checks the tensors and asks for the addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from moerun.layer_spec import LayerSpec


class Placement(NamedTuple):
    """Addresses of every expert's element (0, 0), uint64 [E]; (row, column) strides in elements."""

    gate: np.ndarray
    up: np.ndarray
    down: np.ndarray
    gate_up_strides: tuple[int, int]
    down_strides: tuple[int, int]


class Biases(NamedTuple):
    """fp32, contiguous: gate and up [E, I], down [E, H]. None where a layout has none."""

    gate_bias: np.ndarray | None
    up_bias: np.ndarray | None
    down_bias: np.ndarray | None


@dataclass(frozen=True)
class PerExpert:
    """Three tensors per expert: gate and up [I, H], down [H, I]. Names hold "{expert}"."""

    gate: str
    up: str
    down: str

    @property
    def templates(self) -> tuple[str, ...]:
        """Names of the weights, without the layer's prefix."""
        return self.gate, self.up, self.down

    def weights(self, spec: LayerSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yields every weight tensor's name, without the layer's prefix, and the shape it must have."""
        for expert in range(spec.num_experts):
            yield self.gate.format(expert=expert), (spec.intermediate_size, spec.hidden_size)
            yield self.up.format(expert=expert), (spec.intermediate_size, spec.hidden_size)
            yield self.down.format(expert=expert), (spec.hidden_size, spec.intermediate_size)

    def biases(self, spec: LayerSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yields every bias tensor's name and shape: none in this layout."""
        return iter(())

    def read_biases(self, values: Callable[[str], np.ndarray]) -> Biases:
        """Reads the biases; `values` gives a tensor as fp32."""
        return Biases(None, None, None)

    def place(self, spec: LayerSpec, item_bytes: int, address: Callable[[str], int]) -> Placement:
        """Computes where the matrices lie; `address` gives a tensor's first byte."""

        def addresses(template: str) -> np.ndarray:
            names = (template.format(expert=expert) for expert in range(spec.num_experts))
            return np.fromiter(map(address, names), dtype=np.uint64, count=spec.num_experts)

        return Placement(
            addresses(self.gate),
            addresses(self.up),
            addresses(self.down),
            gate_up_strides=(spec.hidden_size, 1),
            down_strides=(spec.intermediate_size, 1),
        )


@dataclass(frozen=True)
class Fused:
    """One tensor [E, 2I, H] for all gates and ups, and one [E, H, I] for all downs.

    With `transposed` they are [E, H, 2I] and [E, I, H]. Along 2I lie all gate rows, then all up rows; with
    `interleaved`, gate and up take turns. Biases, if any, are [E, 2I] in the same order and [E, H].
    """

    gate_up: str
    down: str
    gate_up_bias: str | None = None
    down_bias: str | None = None
    transposed: bool = False
    interleaved: bool = False

    @property
    def templates(self) -> tuple[str, ...]:
        """Names of the weights, without the layer's prefix."""
        return self.gate_up, self.down

    def weights(self, spec: LayerSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yields every weight tensor's name, without the layer's prefix, and the shape it must have."""
        experts, hidden, intermediate = spec.num_experts, spec.hidden_size, spec.intermediate_size
        if self.transposed:
            yield self.gate_up, (experts, hidden, 2 * intermediate)
            yield self.down, (experts, intermediate, hidden)
        else:
            yield self.gate_up, (experts, 2 * intermediate, hidden)
            yield self.down, (experts, hidden, intermediate)

    def biases(self, spec: LayerSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yields every bias tensor's name and shape."""
        if self.gate_up_bias:
            yield self.gate_up_bias, (spec.num_experts, 2 * spec.intermediate_size)
        if self.down_bias:
            yield self.down_bias, (spec.num_experts, spec.hidden_size)

    def read_biases(self, values: Callable[[str], np.ndarray]) -> Biases:
        """Reads the biases; `values` gives a tensor as fp32."""
        gate = up = down = None
        if self.gate_up_bias:
            both = values(self.gate_up_bias)
            half = both.shape[1] // 2
            gate, up = (both[:, ::2], both[:, 1::2]) if self.interleaved else (both[:, :half], both[:, half:])
            gate, up = np.ascontiguousarray(gate), np.ascontiguousarray(up)
        if self.down_bias:
            down = values(self.down_bias)
        return Biases(gate, up, down)

    def place(self, spec: LayerSpec, item_bytes: int, address: Callable[[str], int]) -> Placement:
        """Computes where the matrices lie; `address` gives a tensor's first byte."""
        experts, hidden, intermediate = spec.num_experts, spec.hidden_size, spec.intermediate_size
        expert = np.arange(experts, dtype=np.uint64)
        gate = np.uint64(address(self.gate_up)) + expert * np.uint64(2 * intermediate * hidden * item_bytes)
        down = np.uint64(address(self.down)) + expert * np.uint64(hidden * intermediate * item_bytes)
        # Between neighbours along 2I, and along H.
        along_rows, along_hidden = (1, 2 * intermediate) if self.transposed else (hidden, 1)
        rows_to_up = 1 if self.interleaved else intermediate
        up = gate + np.uint64(rows_to_up * along_rows * item_bytes)
        row_step = 2 if self.interleaved else 1
        return Placement(
            gate,
            up,
            down,
            gate_up_strides=(row_step * along_rows, along_hidden),
            down_strides=(1, hidden) if self.transposed else (intermediate, 1),
        )


Layout = PerExpert | Fused
