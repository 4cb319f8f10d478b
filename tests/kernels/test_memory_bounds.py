"""Kernels never touch a byte outside of the weights, activations, ids and outputs that they are given.

Each array of a batch and every matrix of every expert lies right before, or right after, a page whose
access kills the process. The cases of one instruction set run in one child process, which says what it is
about to do.
"""

from __future__ import annotations

import itertools

import pytest
import torch

import expert_layers
import guarded_memory
import oracle
from child_process import run_python
from expert_layers import ALL_ISAS, DTYPES, LAYOUTS

# Widths around vectors (8, 16, 32), row multiples (32), the padding (64) and the first block of K (256, 512).
SHAPES = [(33, 1), (1, 1), (7, 3), (31, 17), (64, 64), (65, 33), (72, 40), (96, 130), (272, 24), (24, 530)]
# Tokens of one expert around the choice of kernel (6 and 7) and the tiles (6, 12).
TOKENS = [1, 3, 7, 13]


def place_tensor(tensor: torch.Tensor, place: expert_layers.Placement) -> torch.Tensor:
    """The same numbers in guarded memory."""
    _, memory = place(expert_layers.raw_bytes(tensor))
    return torch.from_numpy(memory.array).view(tensor.dtype).view(tensor.shape)


def run_cases(isa: str) -> None:
    """In the child: computes every case, and compares, too, so that a skipped element is noticed."""
    engine = expert_layers.engine_for(isa)
    sides = {"end": guarded_memory.before_guard, "begin": guarded_memory.after_guard}
    cases = itertools.product(SHAPES, LAYOUTS, DTYPES.items(), sides.items())
    for number, ((hidden, inter), layout, (name, dtype), (side, place)) in enumerate(cases):
        tokens = TOKENS[number % len(TOKENS)]
        x_dtype = list(DTYPES.values())[number // 3 % 3]
        print(
            f"{isa}: H={hidden} I={inter} {layout} {name} x={x_dtype} tokens={tokens}, guard at the {side}",
            flush=True,
        )
        experts = expert_layers.random_experts(2, hidden, inter, dtype, bias=number % 2 == 0, seed=number)
        memory = expert_layers.memory_of(experts, layout, place)
        layer = engine.add_layer(expert_layers.spec_of(experts), memory)
        batch = expert_layers.random_batch(
            tokens, hidden, 2, top_k=1 + number % 2, dtype=x_dtype, seed=number
        )
        x, ids, weights = (place_tensor(t, place) for t in batch)
        out = place_tensor(torch.full((tokens, hidden), float("nan"), dtype=x_dtype), place)
        layer.forward(x, ids, weights, out=out)
        oracle.layer(experts, *batch, bf16_activations=isa in expert_layers.ISAS_WITH_BF16_DOT).check(out)


@pytest.mark.parametrize("isa", ALL_ISAS)
def test_nothing_outside_of_the_arrays_is_touched(isa: str) -> None:
    expert_layers.engine_for(isa).close()
    child = run_python(f"import test_memory_bounds; test_memory_bounds.run_cases({isa!r})", timeout=300)
    cases = child.stdout.splitlines()
    assert child.returncode == 0, f"ended with {child.returncode} in {cases[-1:]}\n{child.stderr[-3000:]}"
    assert len(cases) == len(SHAPES) * len(LAYOUTS) * len(DTYPES) * 2


@pytest.mark.parametrize("at_end", [True, False])
def test_the_guard_works(at_end: bool) -> None:
    child = run_python(f"""
        import ctypes, guarded_memory
        memory = guarded_memory.GuardedMemory(10, at_end={at_end})
        ctypes.string_at(memory.address, 10)
        print("inside", flush=True)
        ctypes.string_at(memory.address + {10 if at_end else -1}, 1)
        """)
    assert child.stdout == "inside\n"
    assert child.returncode < 0, "a read of the forbidden page was not stopped"
