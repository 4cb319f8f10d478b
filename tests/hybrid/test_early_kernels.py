"""Kernels are compiled when a layer is added, before its experts are copied; a batch finds them there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import expert_layers
import moerun
import moerun.gpu_kernels
import moerun.hf
from fake_driver import FakeDriver
from moerun.errors import KernelError
from moerun.kernels.contract import KernelShape, LayerKernels

DEMO = Path(__file__).parents[2] / "examples" / "pycode-moe"
EXPERTS, HIDDEN, INTER, TOP_K = 4, 24, 40, 2


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[KernelShape]:
    """The shapes that were compiled for, in order."""
    shapes: list[KernelShape] = []
    compile_: Callable[[KernelShape, int], LayerKernels] = moerun.gpu_kernels._compile

    def counting(shape: KernelShape, architecture: int) -> LayerKernels:
        shapes.append(shape)
        return compile_(shape, architecture)

    monkeypatch.setattr(moerun.gpu_kernels, "_compile", counting)
    return shapes


def add(engine: moerun.Engine, dtype: torch.dtype, **options: str) -> moerun.Layer:
    experts = expert_layers.random_experts(EXPERTS, HIDDEN, INTER, dtype, seed=1)
    return engine.add_layer(
        expert_layers.spec_of(experts, TOP_K), expert_layers.tensors_of(experts), **options
    )


def step(layer: moerun.Layer, dtype: torch.dtype) -> None:
    layer.forward(*expert_layers.random_batch(2, HIDDEN, EXPERTS, TOP_K, dtype))


@pytest.mark.parametrize(
    ("weights", "given", "x_dtype"),
    [(torch.bfloat16, None, "bf16"), (torch.float32, None, "fp32"), (torch.bfloat16, "fp16", "fp16")],
)
def test_a_batch_of_the_expected_type_compiles_nothing(
    gpu: FakeDriver, compiled: list[KernelShape], weights: torch.dtype, given: str | None, x_dtype: str
) -> None:
    with moerun.Engine(device="cuda", cpu_threads=1, gpu_cache="1MiB") as engine:
        layers = [add(engine, weights, **({} if given is None else {"x_dtype": given})) for _ in range(2)]
        assert [shape.x_dtype for shape in compiled] == [x_dtype]  # one shape, one compilation
        for layer in layers:
            step(layer, expert_layers.DTYPES[x_dtype])
        assert len(compiled) == 1
        other = "bf16" if x_dtype == "fp32" else "fp32"
        step(layers[0], expert_layers.DTYPES[other])
        assert [shape.x_dtype for shape in compiled] == [x_dtype, other]


def test_what_does_not_compile_is_said_before_anything_is_copied(
    gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(shape: KernelShape, architecture: int) -> LayerKernels:
        raise KernelError("no kernel for this")

    with moerun.Engine(device="cuda", cpu_threads=1, gpu_cache="1MiB") as engine:
        before = gpu.counter("pinned_allocations")
        with monkeypatch.context() as patch:
            patch.setattr(moerun.gpu_kernels, "_compile", refuse)
            with pytest.raises(KernelError, match="no kernel for this"):
                add(engine, torch.float32)
        assert gpu.counter("pinned_allocations") == before
        assert engine.layers == ()
        step(add(engine, torch.float32), torch.float32)


def test_an_unknown_type_of_activations(gpu: FakeDriver) -> None:
    with (
        moerun.Engine(device="cuda", cpu_threads=1, gpu_cache="1MiB") as engine,
        pytest.raises(ValueError, match="x_dtype 'int8' is unknown; known: fp32, fp16, bf16"),
    ):
        add(engine, torch.float32, x_dtype="int8")


def test_a_model_compiles_for_what_it_computes_in(gpu: FakeDriver, compiled: list[KernelShape]) -> None:
    options = {"device": "cuda", "gpu_cache": "1MiB", "cpu_threads": 1}
    model = moerun.hf.from_pretrained(DEMO, dtype="fp32", experts="int8", **options)
    assert [(shape.weight_format, shape.x_dtype) for shape in compiled] == [("int8", "fp32")]
    model.generate(torch.tensor([[5, 6]]), max_new_tokens=2)
    assert len(compiled) == 1
    model.moerun_engine.close()
