"""What does not fit is refused before any work starts, with a message that says what was expected and what
was found."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch

import expert_layers
import moerun


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cpu_threads": 0}, ValueError, "cpu_threads must be a positive integer or None, got 0"),
        ({"cpu_threads": -2}, ValueError, "got -2"),
        ({"cpu_threads": 1.5}, ValueError, "got 1.5"),
        ({"cpu_threads": True}, ValueError, "got True"),
        ({"cpu_threads": 10**6}, ValueError, "cpu_threads is 1000000, but .* at most 1024"),
        ({"cpu_threads": 2**40}, ValueError, "cpu_threads is 1099511627776, but .* at most 1024"),
        ({"device": "tpu"}, ValueError, "device 'tpu' is unknown; known: auto, cpu, cuda"),
        ({"schedule": "fast"}, ValueError, "schedule 'fast' is unknown; known: hybrimoe, balanced"),
        ({"cache": "fifo"}, ValueError, "cache 'fifo' is unknown; known: lru, lfu, recent, mrs"),
        ({"prefetch": True}, ValueError, "prefetch True is unknown; known: impact, none"),
        ({"store": "disk"}, ValueError, "store 'disk' is unknown; known: auto, pinned, staged"),
        (
            {"gpu_cache": "much"},
            ValueError,
            "gpu_cache must be bytes .*, a fraction .* or 'auto', got 'much'",
        ),
        ({"gpu_cache": 1.5}, ValueError, "gpu_cache=1.5 is a fraction"),
        ({"gpu_cache": -1}, ValueError, "gpu_cache must not be negative"),
        ({"isa": 5}, ValueError, "isa must be a string or None, got 5"),
        ({"cpu_thread": 1}, TypeError, "no option cpu_thread; it has device, .*cpu_threads, isa"),
        ({"config": {"cpu_threads": 1}}, TypeError, "config must be an EngineConfig, got dict"),
    ],
)
def test_engine_options(options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        moerun.Engine(**options)


def test_numpy_integers_are_integers() -> None:
    assert moerun.Engine(cpu_threads=np.int64(1)).stats()["cpu_threads"] == 1
    assert moerun.LayerSpec(np.int32(4), np.int64(8), 6, top_k=np.uint8(2)).num_experts == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 0}, "LayerSpec.num_experts must be a positive integer, got 0"),
        ({"hidden_size": -1}, "LayerSpec.hidden_size must be a positive integer, got -1"),
        ({"intermediate_size": 2.0}, "LayerSpec.intermediate_size must be a positive integer, got 2.0"),
        ({"top_k": True}, "LayerSpec.top_k must be a positive integer, got True"),
        ({"top_k": 6}, "LayerSpec.top_k is 6, but the layer has 5 experts"),
        ({"activation": "swish"}, "'swish' is unknown; known: silu, gelu"),
        ({"quant": "fp8"}, "'fp8' is unknown; known: "),
    ],
)
def test_layer_spec(small, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        dataclasses.replace(small.layer.spec, **change)


WEIGHT_ERRORS = {
    "missing": (
        lambda t: {"gate_up": t["gate_up"]},
        ValueError,
        "needs the tensors gate_up, down; got gate_up",
    ),
    "extra": (
        lambda t: t | {"gate_up_bias": t["down"]},
        ValueError,
        "bias=False needs the tensors gate_up, down",
    ),
    "nothing": (lambda t: {}, ValueError, "needs the tensors gate_up, down; got none"),
    "a list": (
        lambda t: [t["gate_up"]],
        TypeError,
        "tensors must be a dict, an ExpertMemory or ExpertBlobs, got list",
    ),
    "a list inside": (lambda t: t | {"down": [[1.0]]}, TypeError, "down must be a torch tensor.*, got list"),
    "shape": (
        lambda t: t | {"down": t["down"][:, :, 1:]},
        ValueError,
        r"down must be \[5, 24, 12\], got \[5, 24, 11\]",
    ),
    "dimensions": (
        lambda t: t | {"down": t["down"][0]},
        ValueError,
        r"down must be \[5, 24, 12\], got \[24, 12\]",
    ),
    "types differ": (lambda t: t | {"down": t["down"].half()}, ValueError, "one type, got fp32 and fp16"),
    "a type": (
        lambda t: t | {"down": t["down"].double()},
        ValueError,
        "float32, float16 or bfloat16, got float64",
    ),
    "byte order": (
        lambda t: t | {"down": t["down"].numpy().astype(">f4")},
        ValueError,
        "float32, float16 or bfloat16, got >f4",
    ),
    "meta": (lambda t: t | {"down": t["down"].to("meta")}, ValueError, "down .* meta device .* no data"),
    "sparse": (lambda t: t | {"down": t["down"].to_sparse()}, ValueError, "down .* sparse"),
}


@pytest.mark.parametrize("case", WEIGHT_ERRORS)
def test_weights(small, case: str) -> None:
    change, error, message = WEIGHT_ERRORS[case]
    with pytest.raises(error, match=message):
        small.engine.add_layer(small.layer.spec, change(expert_layers.tensors_of(small.experts)))


def test_biases() -> None:
    experts = expert_layers.random_experts(3, 8, 4, bias=True)
    spec, tensors = expert_layers.spec_of(experts), expert_layers.tensors_of(experts)
    with moerun.Engine(cpu_threads=1) as engine:
        without = {name: tensors[name] for name in ("gate_up", "down")}
        with pytest.raises(
            ValueError, match="bias=True needs the tensors gate_up, down, gate_up_bias, down_bias"
        ):
            engine.add_layer(spec, without)
        with pytest.raises(ValueError, match=r"gate_up_bias must be \[3, 8\], got \[3, 4\]"):
            engine.add_layer(spec, tensors | {"gate_up_bias": tensors["gate_up_bias"][:, :4]})
        with pytest.raises(ValueError, match="gate_up_bias must be float32, float16 or bfloat16, got int32"):
            engine.add_layer(spec, tensors | {"gate_up_bias": tensors["gate_up_bias"].int()})


def test_a_spec_that_is_none(small) -> None:
    with pytest.raises(TypeError, match="spec must be a LayerSpec, got dict"):
        small.engine.add_layer({"num_experts": 5}, expert_layers.tensors_of(small.experts))


MEMORY_ERRORS = {
    "a format": ({"dtype": "fp8"}, "dtype 'fp8' is unknown; known: fp32, fp16, bf16"),
    "fewer ups": ({"up": lambda m: m.up[:2]}, "one address per expert"),
    "fewer of all": (
        {"gate": lambda m: m.gate[:2], "up": lambda m: m.up[:2], "down": lambda m: m.down[:2]},
        "5 experts, the tensors have 2",
    ),
    "null": ({"gate": np.zeros(5, np.uint64)}, "expert 0, gate: the address is null"),
    "short rows": ({"gate_up_strides": (23, 1)}, r"strides \(23, 1\) of a \[12, 24\] matrix"),
    "scattered": ({"down_strides": (3, 80)}, r"strides \(3, 80\) of a \[24, 12\] matrix"),
    "negative": ({"down_strides": (-12, 1)}, r"strides \(-12, 1\)"),
    "biases of fewer experts": (
        {"gate_bias": np.zeros((1, 12), np.float32)},
        "gate_bias must be .5, 12.*got .1, 12",
    ),
    "biases of fewer rows": (
        {"down_bias": np.zeros((5, 23), np.float32)},
        "down_bias must be .5, 24.*got .5, 23",
    ),
    "flat biases": ({"up_bias": np.zeros(60, np.float32)}, "up_bias must be .5, 12.*got .60"),
}


@pytest.mark.parametrize("case", MEMORY_ERRORS)
def test_expert_memory(small, case: str) -> None:
    changes, message = MEMORY_ERRORS[case]
    memory = expert_layers.memory_of(small.experts, "rows")
    changes = {name: change(memory) if callable(change) else change for name, change in changes.items()}
    with pytest.raises(ValueError, match=message):
        small.engine.add_layer(small.layer.spec, dataclasses.replace(memory, **changes))


def test_strides_of_a_matrix_with_one_column(small) -> None:
    """Only row strides that the kernels know: 1, 2 or, with K-contiguous rows, any."""
    experts = expert_layers.random_experts(1, 1, 40)
    memory = expert_layers.memory_of(experts, "rows")
    with pytest.raises(ValueError, match=r"strides \(3, 7\)"):
        small.engine.add_layer(
            expert_layers.spec_of(experts), dataclasses.replace(memory, gate_up_strides=(3, 7))
        )


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


BATCH_ERRORS = {
    "x is a list": (
        {"x": [[1.0]]},
        TypeError,
        "x must be a torch tensor, a numpy array or have __dlpack__, got list",
    ),
    "x is wide": ({"x": torch.ones(7, 25)}, ValueError, r"x must be \[tokens, 24\], got \[7, 25\]"),
    "x is 3-d": ({"x": torch.ones(1, 7, 24)}, ValueError, r"x must be \[tokens, 24\], got \[1, 7, 24\]"),
    "x is a vector": ({"x": torch.ones(24)}, ValueError, r"x must be \[tokens, 24\], got \[24\]"),
    "x is of integers": ({"x": torch.ones(7, 24).int()}, ValueError, "x must be float32, .*, got int32"),
    "x is double": ({"x": torch.ones(7, 24).double()}, ValueError, "x must be float32, .*, got float64"),
    "x is meta": ({"x": torch.ones(7, 24, device="meta")}, ValueError, "x .* meta device .* no data"),
    "x is sparse": ({"x": torch.ones(7, 24).to_sparse()}, ValueError, "x .* sparse"),
    "other tokens": (
        {"ids": torch.zeros(6, 2).long()},
        ValueError,
        r"topk_ids must be \[7, k\] .*, got \[6, 2\]",
    ),
    "flat ids": ({"ids": torch.zeros(7).long()}, ValueError, r"topk_ids must be \[7, k\] .*, got \[7\]"),
    "ids are floats": (
        {"ids": torch.zeros(7, 2)},
        ValueError,
        "topk_ids must be int32 or int64, got float32",
    ),
    "ids are short": (
        {"ids": torch.zeros(7, 2).short()},
        ValueError,
        "topk_ids must be int32 or int64, got int16",
    ),
    "ids are unsigned": ({"ids": np.zeros((7, 2), np.uint32)}, ValueError, "int32 or int64, got uint32"),
    "fewer weights": (
        {"weights": torch.zeros(7, 1)},
        ValueError,
        r"topk_weights must be \[7, 2\] .*, got \[7, 1\]",
    ),
    "weights are of integers": (
        {"weights": torch.zeros(7, 2).long()},
        ValueError,
        "topk_weights .*, got int64",
    ),
    "weights are missing": ({"weights": None}, TypeError, "topk_weights .*, got NoneType"),
    "out is wide": ({"out": torch.ones(7, 25)}, ValueError, r"out must be \[7, 24\], got \[7, 25\]"),
    "out has other tokens": ({"out": torch.ones(8, 24)}, ValueError, r"out must be \[7, 24\], got \[8, 24\]"),
    "out is of integers": (
        {"out": torch.ones(7, 24).int()},
        ValueError,
        "out must be float32, .*, got int32",
    ),
    "out is a list": ({"out": [1]}, TypeError, "out must be .*, got list"),
    "out is meta": ({"out": torch.ones(7, 24, device="meta")}, ValueError, "out .* meta device .* no data"),
    "out is read-only": ({"out": read_only(np.zeros((7, 24), np.float32))}, ValueError, "out is read-only"),
    "out repeats": ({"out": torch.zeros(1, 24).expand(7, 24)}, ValueError, "out .* more than one element"),
    "out wants gradients": ({"out": torch.zeros(7, 24, requires_grad=True)}, ValueError, "out requires grad"),
}


@pytest.mark.parametrize("case", BATCH_ERRORS)
def test_batches(small, case: str) -> None:
    change, error, message = BATCH_ERRORS[case]
    arguments = {
        "x": small.batch.x,
        "ids": small.batch.ids,
        "weights": small.batch.weights,
        "out": None,
    } | change
    before = small.engine.stats()["layers"][0]["batches"]
    x, ids, weights, out = arguments.values()
    with pytest.raises(error, match=message):
        small.layer.forward(x, ids, weights, out=out)
    if out is None:
        with pytest.raises(error, match=message):
            small.layer.submit(x, ids, weights)
    assert small.engine.stats()["layers"][0]["batches"] == before
    assert torch.equal(small.layer.forward(*small.batch), small.output)


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        ([1], TypeError, "out must be .*, got list"),
        (torch.zeros(7, 23), ValueError, r"out must be \[7, 24\], got \[7, 23\]"),
        (torch.zeros(7, 24).int(), ValueError, "out must be float32, .*, got int32"),
        (read_only(np.zeros((7, 24), np.float32)), ValueError, "out is read-only"),
    ],
)
def test_out_of_wait(small, out, error: type, message: str) -> None:
    handle = small.layer.submit(*small.batch)
    with pytest.raises(error, match=message):
        handle.wait(out)
    assert torch.equal(handle.wait(), small.output)


def test_a_closed_engine_says_so(small) -> None:
    handle = small.layer.submit(*small.batch)
    small.engine.close()
    small.engine.close()
    for use in (
        lambda: small.layer.forward(*small.batch),
        lambda: small.layer.submit(*small.batch),
        lambda: small.engine.add_layer(small.layer.spec, expert_layers.tensors_of(small.experts)),
    ):
        with pytest.raises(RuntimeError, match="the engine is closed; create a new one"):
            use()
    assert torch.equal(handle.wait(), small.output)
    assert small.engine.stats()["layers"][0]["batches"] == 2
    assert "closed" in repr(small.engine)


def test_the_context_manager_closes(small) -> None:
    with moerun.Engine(cpu_threads=1) as engine:
        layer = engine.add_layer(small.layer.spec, expert_layers.tensors_of(small.experts))
    with pytest.raises(RuntimeError, match="closed"):
        layer.forward(*small.batch)
