"""Checkpoint: a folder with config.json and safetensors files, validated as a whole when it is opened.

Users and adapters open one and hand it to Engine.add_layer_from. Opening reads headers only; the core maps
the files of experts when they are asked for, and uses them where they lie.
"""

from __future__ import annotations

import operator
import os
import stat
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moerun.checkpoint.config import read_config
from moerun.checkpoint.experts import find_experts
from moerun.checkpoint.families import FAMILIES, family_of, num_layers
from moerun.checkpoint.fingerprint import fingerprint
from moerun.checkpoint.formats import to_fp32, to_numpy
from moerun.checkpoint.index import index_tensors
from moerun.checkpoint.layout import Layout
from moerun.checkpoint.packed import PackedLayout, packed_layouts, packed_scheme, repack_layer
from moerun.checkpoint.problem import is_text, problem, shown
from moerun.checkpoint.safetensors_header import TensorInfo
from moerun.checkpoint.torch_view import map_as_torch
from moerun.layer_spec import ExpertBlobs, ExpertMemory, LayerSpec

if TYPE_CHECKING:
    import torch

    from moerun._core import MappedFile


def _existing_folder(path: str | PathLike[str]) -> Path:
    folder = Path(os.path.abspath(os.fspath(path)))  # the process may change its working directory
    if not is_text(str(folder)) or "\0" in str(folder):
        raise problem(shown(str(path)), "", "a path in valid Unicode", "one that is not")
    expected = "a folder with config.json and safetensors files"
    try:
        is_folder = stat.S_ISDIR(folder.stat().st_mode)
    except OSError as error:
        fix = "Models of the Hugging Face hub are downloaded by 'hf download NAME --local-dir FOLDER'"
        raise problem(folder, "", expected, error.strerror or str(error), fix) from error
    if not is_folder:
        raise problem(folder, "", expected, "a file")
    return folder


class Checkpoint:
    """A Mixture-of-Experts checkpoint in Hugging Face's format, opened for reading.

    All of config.json, the safetensors headers and the experts' tensors are checked here, so that nothing is
    wrong with them later. Experts in bf16, fp16 and fp32 are used where they lie in the mapped files: opening
    takes the time of reading the headers, and the memory is the page cache's. The files must not be shortened
    while they are in use: the operating system ends a process that reads a mapped page which is gone.

    Parameters
    ----------
    path
        A folder with config.json and model.safetensors, or shards with or without
        model.safetensors.index.json.

    Raises
    ------
    CheckpointError
        Anything that is missing, damaged or not supported. The message names file, tensor, what was expected
        and what was found.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self._path = _existing_folder(path)
        config = read_config(self._path, FAMILIES)
        self._family, family = family_of(config)
        scheme = packed_scheme(config)
        self._config = config.fields
        self._spec = family.layer_spec(config)
        self._num_layers = num_layers(config)
        self._index = index_tensors(self._path)
        layouts: Sequence[Layout | PackedLayout] = family.layouts
        if scheme is not None:
            layouts = packed_layouts(family.layouts, scheme)
            if not layouts:
                expected = f"experts of {self._family} unquantised or in another packing"
                raise problem(config.file, "field 'quantization_config'", expected, scheme.name)
        layers = family.moe_layers(config)
        self._experts = find_experts(self._path, self._index, layouts, layers, self._spec)
        self._mapped: dict[Path, MappedFile] = {}
        self._closed = False

    @property
    def path(self) -> Path:
        """The folder, absolute."""
        return self._path

    @property
    def family(self) -> str:
        """The model_type of config.json, one of moerun.checkpoint.FAMILIES."""
        return self._family

    @property
    def config(self) -> dict[str, Any]:
        """config.json of the language model (of a larger model, its text_config)."""
        return self._config

    @property
    def num_layers(self) -> int:
        """Number of decoder layers, with and without experts."""
        return self._num_layers

    @property
    def moe_layers(self) -> list[int]:
        """Indices of the layers that have experts, ascending."""
        return list(self._experts.layers)

    @property
    def expert_dtype(self) -> str:
        """Number format of the experts in the files, one of moerun.WEIGHT_FORMATS."""
        return self._experts.dtype

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert's gate, up and down, with their scales and zero points in our format."""
        from moerun import _core

        weight_format = getattr(_core.WeightFormat, self.expert_dtype)
        return _core.weight_bytes(weight_format, self._spec.hidden_size, self._spec.intermediate_size)

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors of the checkpoint, experts and others."""
        return sum(tensor.nbytes for tensor in self._index.tensors.values())

    @property
    def files(self) -> list[Path]:
        """The safetensors files, in order of their names."""
        return sorted(self._index.file_bytes)

    @property
    def tensor_names(self) -> list[str]:
        """Names of all tensors, experts and others."""
        return list(self._index.tensors)

    @property
    def packed_elsewhere(self) -> list[str]:
        """Names of tensors outside of the experts that are quantised as these are."""
        layout = self._experts.layout
        if not isinstance(layout, PackedLayout):
            return []
        suffixes = tuple(part.suffix for part in layout.scheme.parts(128, 128) if part.suffix != "weight")
        return [name for name in self.tensor_names if name.endswith(suffixes) and ".experts." not in name]

    def spec(self, layer_index: int) -> LayerSpec:
        """Returns the shape and arithmetic of a layer's experts.

        Raises
        ------
        ValueError
            The layer has no experts.
        """
        self._check_layer(layer_index)
        return self._spec

    def experts(self, layer_index: int) -> ExpertMemory | ExpertBlobs:
        """Maps the files of a layer's experts and returns the addresses of their weights.

        Packed experts are laid into blobs, on all cores; no number changes.

        Raises
        ------
        ValueError
            The layer has no experts.
        RuntimeError
            The checkpoint is closed.
        CheckpointError
            A file cannot be mapped, or is not as long as it was when the checkpoint was opened; packed
            experts hold something that has no reader.
        """
        if isinstance(self._experts.layout, PackedLayout):
            return self._packed_experts(layer_index, self._experts.layout)
        return self.plain_experts(layer_index)

    def plain_experts(self, layer_index: int) -> ExpertMemory:
        """As `experts`, of a checkpoint whose experts are not packed: raises ValueError for others."""
        prefix = self._experts.prefix(self._check_layer(layer_index))
        layout = self._experts.layout
        if isinstance(layout, PackedLayout):
            raise ValueError(f"the experts of {self._path} are stored as {self.expert_dtype}")
        files: dict[Path, MappedFile] = {}

        def mapped(file: Path) -> MappedFile:
            return files.setdefault(file, self._map(file))

        def address(name: str) -> int:
            tensor = self._index.tensors[prefix + name]
            return mapped(tensor.file).address + tensor.offset

        def values(name: str) -> np.ndarray:
            tensor = self._index.tensors[prefix + name]
            file: Any = mapped(tensor.file)  # the stub cannot say that it is a buffer
            raw = np.frombuffer(file, np.uint8, count=tensor.nbytes, offset=tensor.offset)
            return to_fp32(raw, tensor.dtype).reshape(tensor.shape)

        placement = layout.place(self._spec, self._experts.item_bytes, address)
        biases = layout.read_biases(values)
        return ExpertMemory(
            dtype=self.expert_dtype,
            **placement._asdict(),
            **biases._asdict(),
            owner=tuple(files.values()),
        )

    def _packed_experts(self, layer_index: int, layout: PackedLayout) -> ExpertBlobs:
        prefix = self._experts.prefix(self._check_layer(layer_index))

        def array(name: str) -> np.ndarray:
            tensor = self._index.tensors[prefix + name]
            return to_numpy(self._content(tensor), tensor.dtype).reshape(tensor.shape)

        biases = layout.read_biases(array)
        try:
            return repack_layer(self._spec, self.expert_dtype, layout.reader(self._spec, array), biases)
        except ValueError as error:
            raise problem(
                self._path, f"layer {prefix[:-1]}", "experts that can be read", str(error)
            ) from error

    def tensor(self, name: str) -> torch.Tensor:
        """Returns any tensor as a torch CPU tensor that reads the file, without a copy.

        Writing into it changes memory of this process only, never the file. It stays valid after `close`.

        Raises
        ------
        CheckpointError
            There is no tensor of this name, torch has no such dtype, the tensor does not lie at a multiple of
            its element size, or the file is not as long as it was when the checkpoint was opened.
        RuntimeError
            The checkpoint is closed.
        """
        self._check_open()
        tensor = self._index.tensors.get(name)
        if tensor is None:
            found = f"{len(self._index.tensors)} others (see tensor_names)"
            raise problem(self._path, f"tensor {shown(name)}", "a tensor of this name", found)
        return map_as_torch(tensor, self._index.file_bytes[tensor.file])

    def prefetch(self, layer_index: int) -> None:
        """Asks the operating system to start reading a layer's experts from disk; does not wait for it.

        Raises
        ------
        ValueError, RuntimeError, CheckpointError
            As `experts`.
        """
        prefix = self._experts.prefix(self._check_layer(layer_index))
        for name, _ in self._experts.layout.weights(self._spec):
            tensor = self._index.tensors[prefix + name]
            self._map(tensor.file).prefetch(tensor.offset, tensor.nbytes)

    def fingerprint(self, layer_index: int) -> str:
        """Returns a name for the content of a layer's experts, 32 hexadecimal digits, without reading it all.

        It changes when the files are changed or replaced; see moerun.checkpoint.fingerprint for how.

        Raises
        ------
        ValueError, RuntimeError, CheckpointError
            As `experts`.
        """
        prefix = self._experts.prefix(self._check_layer(layer_index))
        layout = self._experts.layout
        names = [name for name, _ in (*layout.weights(self._spec), *layout.biases(self._spec))]
        return fingerprint((self._index.tensors[prefix + name] for name in names), self._content)

    def close(self) -> None:
        """Lets go of the files. What `experts` and `tensor` returned stays valid."""
        self._mapped.clear()
        self._closed = True

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"Checkpoint({str(self._path)!r}: {self._family}, {self._num_layers} layers, "
            f"{len(self._experts.layers)} of them with {self._spec.num_experts} experts of "
            f"{self.expert_bytes:,} bytes in {self.expert_dtype}{', closed' if self._closed else ''})"
        )

    def _content(self, tensor: TensorInfo) -> np.ndarray:
        file: Any = self._map(tensor.file)  # the stub cannot say that it is a buffer
        return np.frombuffer(file, np.uint8, count=tensor.nbytes, offset=tensor.offset)

    def _check_layer(self, layer_index: int) -> int:
        layer = int(operator.index(layer_index))
        if layer not in self._experts.layers:
            raise ValueError(f"layer {layer} has no experts; the layers {self.moe_layers} have")
        return layer

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"the checkpoint {self._path} is closed; open it again")

    def _map(self, file: Path) -> MappedFile:
        from moerun import _core

        self._check_open()
        if file not in self._mapped:
            self._mapped[file] = _core.MappedFile(str(file), self._index.file_bytes[file])
        return self._mapped[file]
