"""Other engines beside ours, where one says where they are: kt-kernel by layer, llama.cpp by whole model.

None of them is a part of this project or fetched by it: one builds or installs them elsewhere and passes
their paths to `python -m bench.run --only peers`. A peer without a path is left out, with a line that says
how to give it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.rounds import Budget
from bench.shapes import Shape


def compare_layers(
    kt_kernel: Path | None,
    shapes: Sequence[Shape],
    formats: Sequence[str] | None,
    threads: Sequence[int],
    tokens: Sequence[int],
    budget: Budget,
) -> list[Any]:
    """Rows of layers beside kt-kernel, a Python that has it; prints their tables."""
    if kt_kernel is None:
        print("\nkt-kernel: left out; --kt-kernel PYTHON names a Python with kt-kernel and torch", flush=True)
        return []
    from bench.peers.kt_kernel_layer import FORMATS, NOTE, measure_layers

    formats = [name for name in formats or FORMATS if name in FORMATS]
    rows = [
        row for count in threads for row in measure_layers(kt_kernel, shapes, formats, count, tokens, budget)
    ]
    print(NOTE)
    return rows


def compare_models(
    llama_cpp: Path | None,
    ik_llama_cpp: Path | None,
    formats: Sequence[str] | None,
    threads: Sequence[int],
    layers: int,
    vocab_size: int | None,
) -> list[Any]:
    """Rows of whole models beside llama.cpp and ik_llama.cpp, folders of theirs; prints their tables."""
    from bench.peers import llama_bench, llama_models

    peers: list[llama_bench.LlamaBench] = []
    for option, folder, variants in (
        ("llama-cpp", llama_cpp, llama_bench.llama_cpp),
        ("ik-llama-cpp", ik_llama_cpp, llama_bench.ik_llama_cpp),
    ):
        if folder is None:
            print(f"\n{option}: left out; --{option} FOLDER names the folder of its llama-bench", flush=True)
        else:
            peers += variants(folder)
    if not peers:
        return []
    formats = [name for name in formats or llama_bench.FORMATS if name in llama_bench.FORMATS]
    words = vocab_size or llama_models.VOCAB_SIZE
    rows = [
        row for count in threads for row in llama_models.measure_models(peers, formats, count, layers, words)
    ]
    print(llama_models.NOTE)
    return rows
