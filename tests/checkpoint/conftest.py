"""Fixtures of the checkpoint reader's tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers.utils import logging

from random_checkpoints import save_random_checkpoint


@pytest.fixture(scope="session", autouse=True)
def _no_progress_bars() -> None:
    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def saved_qwen3_moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3_moe")
    save_random_checkpoint("qwen3_moe", folder)
    return folder


@pytest.fixture
def folder(saved_qwen3_moe: Path, tmp_path: Path) -> Path:
    """A test's own copy of a qwen3_moe: 2 layers, 6 experts, hidden 64, intermediate 48, per expert, fp32,
    one file."""
    shutil.copytree(saved_qwen3_moe, tmp_path, dirs_exist_ok=True)
    return tmp_path
