"""The kinds of arrays that a layer takes: torch, numpy, DLPack, views of any strides, empty ones; and
out=."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import expert_layers
import moerun
import oracle


class OnlyDlpack:
    """An array of which nothing is known but DLPack."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def __dlpack__(self, **options: Any) -> Any:
        return self._tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._tensor.__dlpack_device__()


def test_torch(small) -> None:
    assert small.output.dtype == small.batch.x.dtype
    small.expected.check(small.output)


def test_numpy_in_numpy_out(small) -> None:
    got = small.layer.forward(*(t.numpy() for t in small.batch))
    assert isinstance(got, np.ndarray)
    assert np.array_equal(got, small.output.numpy())


def test_dlpack(small) -> None:
    got = small.layer.forward(*(OnlyDlpack(t) for t in small.batch))
    assert torch.equal(torch.from_dlpack(got), small.output)


@pytest.mark.parametrize(
    "wrap", [lambda t: t, lambda t: t.numpy(), OnlyDlpack], ids=["torch", "numpy", "DLPack"]
)
def test_out_of_every_kind(small, wrap) -> None:
    memory = torch.full_like(small.output, float("nan"))
    out = wrap(memory)
    assert small.layer.forward(*small.batch, out=out) is out
    assert torch.equal(memory, small.output)


@pytest.mark.parametrize("ids", [torch.int32, torch.int64])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.float16])
def test_types_of_ids_and_weights(small, ids, weights) -> None:
    batch = small.batch
    got = small.layer.forward(batch.x, batch.ids.to(ids), batch.weights.to(weights))
    same = small.layer.forward(batch.x, batch.ids, batch.weights.to(weights).float())
    assert torch.equal(got, same)


def strided(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Views with the same numbers: columns first, every other row, every other column, a row that repeats."""
    rows, columns = tensor.shape
    every_other_row = tensor.new_zeros(2 * rows, columns)[::2]
    every_other_column = tensor.new_zeros(rows, 2 * columns)[:, 1::2]
    views = [tensor.T.contiguous().T, every_other_row, every_other_column]
    for view in views[1:]:
        view.copy_(tensor)
    return views


def test_strided_arrays(small) -> None:
    for position in range(3):
        for view in strided(list(small.batch)[position]):
            arrays = list(small.batch)
            arrays[position] = view
            assert torch.equal(small.layer.forward(*arrays), small.output)
            assert np.array_equal(small.layer.forward(*(a.numpy() for a in arrays)), small.output.numpy())


def test_strided_out(small) -> None:
    for view in strided(torch.zeros_like(small.output)):
        assert small.layer.forward(*small.batch, out=view) is view
        assert torch.equal(view, small.output)


def test_negative_strides(small) -> None:
    x, ids, weights = (t.numpy() for t in small.batch)
    got = small.layer.forward(x[::-1], ids[::-1], weights[::-1])
    assert np.array_equal(got[::-1], small.output.numpy())
    got = small.layer.forward(x, ids[:, ::-1], weights[:, ::-1])
    small.expected.check(torch.from_numpy(got))
    x_mirrored = np.ascontiguousarray(x[:, ::-1])
    assert np.array_equal(small.layer.forward(x_mirrored[:, ::-1], ids, weights), small.output.numpy())
    out = np.zeros_like(x)
    small.layer.forward(x, ids, weights, out=out[::-1, ::-1])
    assert np.array_equal(out[::-1, ::-1], small.output.numpy())


def test_expanded_x(small) -> None:
    """A row with stride 0 that stands for many tokens; as out it would make no sense."""
    x = small.batch.x[2:3].expand(7, -1)
    got = small.layer.forward(x, small.batch.ids, small.batch.weights)
    assert torch.equal(got, small.layer.forward(x.clone(), small.batch.ids, small.batch.weights))


def test_fields_of_numpy_records(small) -> None:
    """Their strides are no multiples of the item size."""

    def field(array: np.ndarray) -> np.ndarray:
        records = np.zeros(array.shape, dtype=[("value", array.dtype), ("other", np.int16)])
        records["value"] = array
        return records["value"]

    tensors = {name: field(t.numpy()) for name, t in expert_layers.tensors_of(small.experts).items()}
    layer = small.engine.add_layer(small.layer.spec, tensors)
    got = layer.forward(*(field(t.numpy()) for t in small.batch))
    assert np.array_equal(got, small.output.numpy())


@pytest.mark.parametrize("inter", [1, 6])
@pytest.mark.parametrize("hidden", [1, 6])
@pytest.mark.parametrize("num_experts", [1, 2])
def test_strides_of_dimensions_of_one_do_not_matter(num_experts: int, hidden: int, inter: int) -> None:
    experts = expert_layers.random_experts(num_experts, hidden, inter)
    batch = expert_layers.random_batch(3, hidden, num_experts, top_k=1)
    with moerun.Engine(cpu_threads=1) as engine:
        spec = expert_layers.spec_of(experts)
        plain = expert_layers.tensors_of(experts)
        expected = engine.add_layer(spec, plain).forward(*batch)
        for stride in (0, 1, 2, 3, 50):
            odd = {
                name: t.as_strided(
                    t.shape, [stride if n == 1 else s for n, s in zip(t.shape, t.stride(), strict=True)]
                )
                for name, t in plain.items()
            }
            assert torch.equal(engine.add_layer(spec, odd).forward(*batch), expected)


def test_transposed_and_odd_weights(small) -> None:
    for change in (
        lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
        lambda t: t.repeat_interleave(2, dim=2)[:, :, ::2],
        lambda t: t.repeat_interleave(2, dim=1)[:, ::2],
        lambda t: t.repeat_interleave(2, dim=0)[::2],
        lambda t: t.permute(2, 1, 0).contiguous().permute(2, 1, 0),
        lambda t: t.clone().requires_grad_(),
        lambda t: t.flip(2).numpy()[:, :, ::-1],
        lambda t: t.flip(1).numpy()[:, ::-1],
        lambda t: t.flip(0).numpy()[::-1],
        OnlyDlpack,
    ):
        tensors = {name: change(t) for name, t in expert_layers.tensors_of(small.experts).items()}
        layer = small.engine.add_layer(small.layer.spec, tensors)
        small.expected.check(layer.forward(*small.batch))


def test_one_expert_for_all_through_stride_0(small) -> None:
    tensors = {name: t[:1].expand_as(t) for name, t in expert_layers.tensors_of(small.experts).items()}
    layer = small.engine.add_layer(small.layer.spec, tensors)
    x, ids, weights = small.batch
    oracle.layer(small.experts, x, torch.zeros_like(ids), weights).check(layer.forward(*small.batch))


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_no_tokens(small, kind: str) -> None:
    empty = [t[:0] if kind == "torch" else t[:0].numpy() for t in small.batch]
    assert tuple(small.layer.forward(*empty).shape) == (0, 24)
    assert tuple(small.layer.submit(*empty).wait().shape) == (0, 24)


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_no_experts_per_token(small, kind: str) -> None:
    x, ids, weights = (t if kind == "torch" else t.numpy() for t in small.batch)
    out = torch.full((7, 24), float("nan"))
    got = small.layer.forward(x, ids[:, :0], weights[:, :0], out=out)
    assert got is out
    assert (out == 0).all()


def test_ids_out_of_range_are_skipped(small) -> None:
    x, ids, weights = small.batch
    for ids_type in (torch.int32, torch.int64):
        limits = torch.iinfo(ids_type)
        for bad in (-1, 5, limits.min, limits.max):
            assert (small.layer.forward(x, torch.full_like(ids, bad, dtype=ids_type), weights) == 0).all()
    if_truncated_valid = torch.full_like(ids, 2**32)
    assert (small.layer.forward(x, if_truncated_valid, weights) == 0).all()


def test_out_may_be_x(small) -> None:
    x = small.batch.x.clone()
    assert small.layer.forward(x, small.batch.ids, small.batch.weights, out=x) is x
    assert torch.equal(x, small.output)


def test_out_may_overlap_x() -> None:
    """More tokens than one part of a batch has, so that outputs are written while inputs are still to be
    read."""
    experts = expert_layers.random_experts(2, 64, 8)
    batch = expert_layers.random_batch(5000, 64, 2, top_k=2)
    ids = batch.ids.repeat(1, 32)
    weights = batch.weights.repeat(1, 32) / 32
    with moerun.Engine(cpu_threads=1) as engine:
        layer = engine.add_layer(expert_layers.spec_of(experts), expert_layers.tensors_of(experts))
        expected = layer.forward(batch.x, ids, weights)
        memory = torch.zeros(5001, 64)
        memory[:5000] = batch.x
        assert torch.equal(layer.forward(memory[:5000], ids, weights, out=memory[1:]), expected)


def test_gradients_are_not_tracked(small) -> None:
    x = small.batch.x.clone().requires_grad_()
    got = small.layer.forward(x, small.batch.ids, small.batch.weights)
    assert not got.requires_grad
    assert torch.equal(got, small.output)
