"""Fixtures of the adapter's tests: random checkpoints, each saved once per run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils import logging

from moerun.dense import CachedAttention, Decoder, TokenRun
from random_checkpoints import save_random_checkpoint


@pytest.fixture(scope="session", autouse=True)
def _no_progress_bars() -> None:
    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """random_checkpoint(family, **save_random_checkpoint's options) -> folder. Not to be written to."""

    @functools.cache
    def saved(family: str, **options: object) -> Path:
        folder = tmp_path_factory.mktemp(family)
        save_random_checkpoint(family, folder, **options)
        return folder

    return saved


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes [sequences, tokens] that each layer's attention has run in the engine, alone or in a decoder."""
    seen: list[tuple[int, ...]] = []
    alone, together, following = CachedAttention.forward, Decoder.forward, TokenRun.next

    def spy_alone(self: CachedAttention, x: torch.Tensor, *rest: Any) -> Any:
        seen.append(tuple(x.shape[:2]))
        return alone(self, x, *rest)

    def spy_together(self: Decoder, x: torch.Tensor, *rest: Any) -> Any:
        seen.extend([tuple(x.shape[:2])] * len(self.layers))
        return together(self, x, *rest)

    def spy_following(self: TokenRun, token: int) -> int:
        seen.extend([(1, 1)] * self.layers)
        return following(self, token)

    monkeypatch.setattr(TokenRun, "next", spy_following)
    monkeypatch.setattr(CachedAttention, "forward", spy_alone)
    monkeypatch.setattr(Decoder, "forward", spy_together)
    return seen
