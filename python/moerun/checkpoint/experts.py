"""Finds and checks the tensors of all experts of a checkpoint, by headers alone, for `checkpoint`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from moerun.checkpoint.formats import PLAIN_DTYPES
from moerun.checkpoint.index import TensorIndex
from moerun.checkpoint.layout import Layout
from moerun.checkpoint.packed import PackedLayout
from moerun.checkpoint.problem import problem, shown
from moerun.checkpoint.safetensors_header import ITEM_BITS, TensorInfo
from moerun.layer_spec import LayerSpec

# What may stand before "layers.L.": the causal model, the bare model, two ways to be part of a larger model.
_ROOTS = ("model.", "", "model.language_model.", "language_model.model.")


class ExpertTensors(NamedTuple):
    """Which tensors hold the experts. All are there, in the right shape and in one dtype."""

    root: str
    layout: Layout | PackedLayout
    layers: list[int]
    dtype: str  # one of WEIGHT_FORMATS
    item_bytes: int  # of one weight that is not quantised

    def prefix(self, layer: int) -> str:
        """What the names of a layer's tensors begin with."""
        return f"{self.root}layers.{layer}."


def find_experts(
    folder: Path,
    index: TensorIndex,
    layouts: Sequence[Layout | PackedLayout],
    layers: Iterable[int],
    spec: LayerSpec,
) -> ExpertTensors:
    """Finds out which layout the checkpoint uses and checks every expert tensor of every layer.

    Raises
    ------
    CheckpointError
        There are no experts, or one of their tensors is missing, has another shape than config.json says,
        another dtype than the first one or one that is not supported, or does not lie at a multiple of its
        element size.
    """
    root, layout = _detect(folder, index, layouts)
    if isinstance(layout, PackedLayout):
        return _find_packed(folder, index, root, layout, layers, spec)
    weights, biases = list(layout.weights(spec)), list(layout.biases(spec))
    first: TensorInfo | None = None
    checked = []
    for layer in layers:
        prefix = f"{root}layers.{layer}."
        for name, shape in weights:
            tensor = _find(folder, index, prefix + name, shape)
            first = first or tensor
            if tensor.dtype != first.dtype:
                expected = f"{first.dtype}, as {shown(first.name)} in {first.file.name} has"
                raise problem(tensor.file, f"tensor {shown(tensor.name)}", expected, tensor.dtype)
        for name, shape in biases:
            _find(folder, index, prefix + name, shape)
        checked.append(layer)
    if first is None:
        raise problem(folder / "config.json", "", "at least one layer with experts", "none")
    return ExpertTensors(root, layout, checked, *PLAIN_DTYPES[first.dtype])


def _find_packed(
    folder: Path, index: TensorIndex, root: str, layout: PackedLayout, layers: Iterable[int], spec: LayerSpec
) -> ExpertTensors:
    try:
        parts = list(layout.parts(spec))
    except ValueError as error:
        raise problem(
            folder / "config.json", "", f"sizes that {layout.scheme.name} can have", str(error)
        ) from error
    checked = []
    for layer in layers:
        prefix = f"{root}layers.{layer}."
        for name, part in parts:
            _find(folder, index, prefix + name, part.shape, part.dtypes)
        for name, shape in layout.biases(spec):
            _find(folder, index, prefix + name, shape)
        checked.append(layer)
    return ExpertTensors(root, layout, checked, layout.scheme.weight_format, 0)


def check_alignment(tensor: TensorInfo, item_bytes: int) -> None:
    """Raises CheckpointError unless a tensor lies at a multiple of its element size, as compilers assume."""
    if tensor.offset % item_bytes:
        raise problem(
            tensor.file,
            f"tensor {shown(tensor.name)}",
            f"an offset in the file that is a multiple of its element size, {item_bytes} bytes",
            str(tensor.offset),
            "Load and save the file with the safetensors library, which aligns it",
        )


def _find(
    folder: Path,
    index: TensorIndex,
    name: str,
    shape: tuple[int, ...],
    dtypes: Sequence[str] = tuple(PLAIN_DTYPES),
) -> TensorInfo:
    tensor = index.tensors.get(name)
    if tensor is None:
        raise problem(folder, f"tensor {shown(name)}", f"shape {list(shape)}", "no tensor of this name")
    if tensor.shape != shape:
        expected, found = f"shape {list(shape)}, by config.json", str(list(tensor.shape))
        raise problem(tensor.file, f"tensor {shown(name)}", expected, found)
    if tensor.dtype not in dtypes:
        raise problem(
            tensor.file, f"tensor {shown(name)}", f"one of {', '.join(dtypes)}", f"dtype {tensor.dtype}"
        )
    check_alignment(tensor, ITEM_BITS[tensor.dtype] // 8)
    return tensor


def _detect(
    folder: Path, index: TensorIndex, layouts: Sequence[Layout | PackedLayout]
) -> tuple[str, Layout | PackedLayout]:
    """Goes by the first name that fits a layout. What is damaged is then missed by its name, in _find."""
    roots = "|".join(map(re.escape, _ROOTS))
    patterns = []
    for layout in layouts:
        names = "|".join(re.escape(name).replace(r"\{expert\}", r"\d+") for name in layout.templates)
        patterns.append((layout, re.compile(rf"({roots})layers\.\d+\.(?:{names})")))
    for name in index.tensors:
        for layout, pattern in patterns:
            if match := pattern.fullmatch(name):
                return match[1], layout
    example = f"{_ROOTS[0]}layers.L.{layouts[0].templates[0]}"
    nearest = next((f"; there is {shown(name)}" for name in index.tensors if "experts" in name), "")
    raise problem(
        folder, "", f"experts named like {example!r}", f"none among {len(index.tensors)} tensors{nearest}"
    )
