"""A small layer on one thread, its experts, a batch, and what the oracle says of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

import expert_layers
import moerun
import oracle
from expert_layers import Routed
from oracle import Expected, Experts


@dataclass(frozen=True)
class Small:
    engine: moerun.Engine
    layer: moerun.Layer
    experts: Experts
    batch: Routed
    expected: Expected
    output: torch.Tensor  # what the engine gives for torch tensors


@pytest.fixture
def small() -> Iterator[Small]:
    experts = expert_layers.random_experts(5, 24, 12, seed=31)
    batch = expert_layers.random_batch(7, 24, 5, top_k=2, seed=32)
    with moerun.Engine(cpu_threads=1) as engine:
        layer = engine.add_layer(expert_layers.spec_of(experts, 2), expert_layers.tensors_of(experts))
        output = layer.forward(*batch)
        yield Small(engine, layer, experts, batch, oracle.layer(experts, *batch), output)
