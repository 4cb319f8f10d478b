"""Experts are never materialised in torch: a process that loads and runs a model hardly grows.

RssAnon is memory that the process wrote itself. Pages of mapped files do not count; experts in torch would,
which loading the same checkpoint with transformers alone shows.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

MIB = 2**20
SHAPE = {"hidden_size": 512, "moe_intermediate_size": 512, "num_experts": 32, "num_hidden_layers": 3}
EXPERTS_MIB = 3 * 32 * 3 * 512 * 512 * 2 / MIB  # layers, experts, matrices, rows, columns, bytes

LOAD_AND_RUN = """
import sys, torch
from transformers import AutoModelForCausalLM
import moerun.hf
torch.set_num_threads(1)
load = {"ours": moerun.hf.from_pretrained, "torch": AutoModelForCausalLM.from_pretrained}[sys.argv[1]]
for folder in sys.argv[2:]:  # a tiny checkpoint first: what loading any model needs is not counted
    print(flush=True)
    model = load(folder)
    with torch.no_grad():
        model(torch.arange(3, 103)[None])
print(flush=True)
"""


def anonymous_mib(pid: int) -> float:
    """RssAnon of a process; 0 when it has just ended."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


@pytest.fixture(scope="module")
def folders(random_checkpoint: Callable[..., Path]) -> list[str]:
    big = random_checkpoint("qwen3_moe", dtype="bf16", **SHAPE)
    return [str(random_checkpoint("qwen3_moe", dtype="bf16")), str(big)]


def growth_mib(how: str, folders: list[str]) -> float:
    """How far RssAnon rises, at its highest, while the second of `folders` is loaded and run."""
    with subprocess.Popen(
        [sys.executable, "-c", LOAD_AND_RUN, how, *folders], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        process.stdout.readline()
        before = peak = anonymous_mib(process.pid)
        while process.poll() is None:
            peak = max(peak, anonymous_mib(process.pid))
            time.sleep(0.002)
        assert process.returncode == 0, process.stderr.read().decode()
    return peak - before


def test_experts_are_never_materialised_in_torch(folders: list[str]) -> None:
    assert growth_mib("ours", folders) < EXPERTS_MIB / 4


def test_the_measure_sees_experts_in_torch(folders: list[str]) -> None:
    assert growth_mib("torch", folders) > EXPERTS_MIB * 0.9
