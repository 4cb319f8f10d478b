"""The process in which Triton's interpreter is on: it must be on before triton is imported, and then stays.
Other tests of the session import triton as it is."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import interpreter
import pytest
import torch
from interpreted import Step, run


@pytest.fixture(scope="session")
def interpreter_process() -> Iterator[ProcessPoolExecutor]:
    """One process, in which the interpreter is on."""
    pytest.importorskip("triton")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=interpreter.prepare) as process:
        yield process


@pytest.fixture(scope="session")
def interpret(interpreter_process: ProcessPoolExecutor) -> Callable[[Step], torch.Tensor]:
    """Runs a step in the interpreter."""
    return lambda step: interpreter_process.submit(run, step).result()
