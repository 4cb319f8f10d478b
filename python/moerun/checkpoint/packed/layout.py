"""Where a packed checkpoint keeps its experts: the names of a plain layout with the suffixes of a scheme."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from moerun.checkpoint.layout import Biases, Fused, Layout, PerExpert
from moerun.checkpoint.packed.mxfp4 import Mxfp4
from moerun.checkpoint.packed.parts import Part, Projection, Scheme
from moerun.checkpoint.packed.repack import Read
from moerun.layer_spec import LayerSpec


@dataclass(frozen=True)
class PackedLayout:
    """The tensors of all experts of a layer.

    A projection that is "X.weight" in a plain checkpoint has "X." and the suffix of each part here. gpt-oss
    keeps all experts in one tensor per part instead, gate's and up's rows taking turns.
    """

    base: Layout
    scheme: Scheme

    @property
    def templates(self) -> tuple[str, ...]:
        """Names of the first part of each projection, without the layer's prefix."""
        first = self.scheme.parts(128, 128)[0].suffix
        return tuple(name.removesuffix("weight") + first for name in self.base.templates)

    def parts(self, spec: LayerSpec) -> Iterator[tuple[str, Part]]:
        """Yields every tensor's name, without the layer's prefix, and what it must be."""
        for name, shape in self.base.weights(spec):
            if isinstance(self.base, PerExpert):
                rows, columns = shape
                leading: tuple[int, ...] = ()
            else:
                is_down = name == self.base.down
                rows, columns = spec.hidden_size, spec.intermediate_size
                if not is_down:
                    rows, columns = 2 * spec.intermediate_size, spec.hidden_size
                leading = (spec.num_experts,)
            for part in self.scheme.parts(rows, columns):
                yield name.removesuffix("weight") + part.suffix, part._replace(shape=leading + part.shape)

    def weights(self, spec: LayerSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yields every tensor's name and shape."""
        return ((name, part.shape) for name, part in self.parts(spec))

    def biases(self, spec: LayerSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yields every bias tensor's name and shape."""
        return self.base.biases(spec)

    def read_biases(self, values: Callable[[str], np.ndarray]) -> Biases:
        """Reads the biases; `values` gives a tensor as fp32."""
        return self.base.read_biases(values)

    def reader(self, spec: LayerSpec, array: Callable[[str], np.ndarray]) -> Read:
        """Returns what unpacks one expert; `array` gives a tensor by name. Errors name the projection."""
        inter, hidden = spec.intermediate_size, spec.hidden_size
        suffixes = [part.suffix for part in self.scheme.parts(128, 128)]

        def unpack(
            name: str, rows: int, columns: int, select: Callable[[np.ndarray], np.ndarray]
        ) -> Projection:
            stem = name.removesuffix("weight")
            try:
                tensors = {suffix: select(array(stem + suffix)) for suffix in suffixes}
                return self.scheme.unpack(tensors, rows, columns)
            except ValueError as error:
                raise ValueError(f"{stem}*: {error}") from error

        def read(expert: int) -> tuple[Projection, Projection, Projection]:
            if isinstance(self.base, PerExpert):
                gate, up, down = (name.format(expert=expert) for name in self.base.templates)
                picks: tuple[Callable[[np.ndarray], np.ndarray], ...] = (_whole, _whole, _whole)
            else:
                gate, up, down = self.base.gate_up, self.base.gate_up, self.base.down
                picks = (lambda a: a[expert, 0::2], lambda a: a[expert, 1::2], lambda a: a[expert])
            return (
                unpack(gate, inter, hidden, picks[0]),
                unpack(up, inter, hidden, picks[1]),
                unpack(down, hidden, inter, picks[2]),
            )

        return read


def _whole(array: np.ndarray) -> np.ndarray:
    return array


def packed_layouts(layouts: tuple[Layout, ...], scheme: Scheme) -> list[PackedLayout]:
    """The ways in which a family's experts are published when they are packed by `scheme`."""
    wanted: type[PerExpert] | type[Fused] = Fused if isinstance(scheme, Mxfp4) else PerExpert
    return [PackedLayout(layout, scheme) for layout in layouts if isinstance(layout, wanted)]
