"""torch.ops.moerun.experts behaves as operators do: it compiles, and no gradient is lost silently."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import moerun
import moerun.hf
from moerun.torch_ops import register_layer

EXPERTS, HIDDEN, INTERMEDIATE, TOP_K = 5, 24, 40, 2
experts = torch.ops.moerun.experts


def add_layer(engine: moerun.Engine) -> object:
    generator = torch.Generator().manual_seed(0)
    spec = moerun.LayerSpec(EXPERTS, HIDDEN, INTERMEDIATE, TOP_K)
    tensors = {
        "gate_up": torch.randn(EXPERTS, 2 * INTERMEDIATE, HIDDEN, generator=generator),
        "down": torch.randn(EXPERTS, HIDDEN, INTERMEDIATE, generator=generator),
    }
    return engine.add_layer(spec, tensors)


def inputs(
    tokens: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, HIDDEN, generator=generator).to(dtype)
    ids = torch.randint(0, EXPERTS, (tokens, TOP_K), generator=generator)
    return x, ids, torch.rand(tokens, TOP_K, generator=generator)


@pytest.fixture
def layer() -> Iterator[object]:
    with moerun.Engine(cpu_threads=1) as engine:
        yield add_layer(engine)


@pytest.mark.parametrize("tokens", [0, 1, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_is_the_layer(layer: object, tokens: int, dtype: torch.dtype) -> None:
    x, ids, weights = inputs(tokens, dtype)
    y = experts(x, ids, weights, register_layer(layer))
    assert y.dtype == dtype
    torch.testing.assert_close(y, layer.forward(x, ids, weights), rtol=0, atol=0)


@pytest.mark.parametrize("tokens", [0, 1, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(layer: object, tokens: int, dtype: torch.dtype) -> None:
    torch.library.opcheck(experts.default, (*inputs(tokens, dtype), register_layer(layer)))


def test_compiles_once_for_any_number_of_tokens_and_any_layer(layer: object) -> None:
    with moerun.Engine(cpu_threads=1) as other_engine:
        handles = [register_layer(layer), register_layer(other := add_layer(other_engine))]
        graphs: list[torch.fx.GraphModule] = []

        def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable:
            graphs.append(graph)
            return graph.forward

        @torch.compile(fullgraph=True, dynamic=True, backend=backend)
        def doubled(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, handle: int) -> torch.Tensor:
            return experts(x, ids, weights, handle) * 2

        for tokens in (3, 9):
            for handle in handles:
                call = inputs(tokens)
                torch.testing.assert_close(doubled(*call, handle), other.forward(*call) * 2)
        assert len(graphs) == 1


def test_backward_is_refused(layer: object) -> None:
    x, ids, weights = inputs(3)
    y = experts(x.requires_grad_(), ids, weights, register_layer(layer))
    assert y.requires_grad, "a gradient must not be lost silently"
    with pytest.raises(NotImplementedError, match=r"inference only .* torch\.no_grad\(\)"):
        y.sum().backward()


def test_unknown_handle() -> None:
    with pytest.raises(RuntimeError, match="no layer of experts has the handle -1: it was never registered"):
        experts(*inputs(1), -1)


def test_layers_are_held_weakly() -> None:
    engine = moerun.Engine(cpu_threads=1)
    handle = register_layer(add_layer(engine))
    engine.close()
    del engine
    gc.collect()
    with pytest.raises(RuntimeError, match="its engine is gone"):
        experts(*inputs(1), handle)


def test_closed_engine() -> None:
    engine = moerun.Engine(cpu_threads=1)
    handle = register_layer(kept := add_layer(engine))
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        experts(*inputs(1), handle)
    del kept


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_whole_models_compile(random_checkpoint: Callable[..., Path], grad: bool) -> None:
    model = moerun.hf.from_pretrained(random_checkpoint("qwen3_moe"))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    ids = torch.randint(3, 128, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(compiled(ids).logits, model(ids).logits)
