"""The linear layers of a model run in the engine, and in torch again once they were moved."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import moerun.hf
from moerun.hf.dense import EngineLinear
from random_checkpoints import save_random_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    folder: Path = tmp_path_factory.mktemp("dense")
    save_random_checkpoint("qwen3_moe", folder)
    return moerun.hf.from_pretrained(folder, cpu_threads=1)


def linears(model: torch.nn.Module) -> list[EngineLinear]:
    return [m for m in model.modules() if isinstance(m, EngineLinear)]


def test_every_linear_is_taken(model: torch.nn.Module) -> None:
    assert len(linears(model)) == sum(isinstance(m, torch.nn.Linear) for m in model.modules())
    assert linears(model)


def test_equals_torch_and_uses_the_engine(model: torch.nn.Module) -> None:
    linear = linears(model)[0]
    x = torch.randn(2, 3, linear.in_features)
    before = model.moerun_engine.stats()["dense_seconds"]
    with torch.no_grad():
        got = linear(x)
    assert model.moerun_engine.stats()["dense_seconds"] > before
    torch.testing.assert_close(got, torch.nn.functional.linear(x, linear.weight, linear.bias).detach())


def test_falls_back_to_torch_when_copied_or_converted(model: torch.nn.Module) -> None:
    moved = copy.deepcopy(linears(model)[0]).to(torch.bfloat16)
    before = model.moerun_engine.stats()["dense_seconds"]
    x = torch.randn(3, moved.in_features, dtype=torch.bfloat16)
    with torch.no_grad():
        got = moved(x)
    assert model.moerun_engine.stats()["dense_seconds"] == before
    torch.testing.assert_close(got, torch.nn.functional.linear(x, moved.weight, moved.bias).detach())
