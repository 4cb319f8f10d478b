"""Attention, routers, norms and quantised matrices never touch a byte outside of the arrays they are given.

As in test_memory_bounds.py: each array lies right before, or right after, a page whose access kills the
process, which is a child that says what it is about to do.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from test_dense_attention import check, random_batch, random_module
from test_memory_bounds import place_tensor

import guarded_memory
from child_process import check_python
from moerun import Engine, _core
from moerun.dense import RmsNorm, Router

SIDES = {"end": guarded_memory.before_guard, "begin": guarded_memory.after_guard}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HEAD_DIMS = (16, 40, 72)
WIDTHS = (1, 9, 17, 33, 70)


def run_cases() -> None:
    """In the child."""
    torch.set_num_threads(1)
    for isa, (side, place), dtype in itertools.product(_core.available_isas(), SIDES.items(), DTYPES):
        print(f"{isa}, {dtype}, guard at the {side}", flush=True)
        with Engine(isa=isa, cpu_threads=1) as engine:
            for number, head_dim in enumerate(HEAD_DIMS):
                module = random_module(6, 3, head_dim, dtype, norm="head", sinks=True)
                batch = random_batch(
                    module,
                    sequences=1 + number % 2,
                    tokens=1 + number,
                    past=[5, 0, 260][number],
                    rotated=head_dim // 2,
                    masked=number != 1,
                    x_type=dtype,
                    cache_type=dtype,
                    spare=0,
                )
                arrays = ("x", "cos", "sin", "keys", "values", "mask")
                placed = {
                    name: place_tensor(t, place) for name in arrays if (t := getattr(batch, name)) is not None
                }
                check(engine, module, replace(batch, **placed))
            for width in WIDTHS:
                x = place_tensor(torch.randn(3, width).to(dtype), place)
                assert RmsNorm(engine, torch.ones(width), 1e-6).forward(x).isfinite().all()
                weight = place_tensor(torch.randn(7, width).to(dtype), place)
                assert Router(engine, weight, 2).forward(x).logits.isfinite().all()
                assert engine.add_linear(weight, quant="int4_g32").forward(x).isfinite().all()


def test_nothing_outside_of_the_arrays_is_touched() -> None:
    said = check_python("import test_dense_memory_bounds; test_dense_memory_bounds.run_cases()", timeout=200)
    assert len(said.splitlines()) == len(_core.available_isas()) * len(SIDES) * len(DTYPES)
