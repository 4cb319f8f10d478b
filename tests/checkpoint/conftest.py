"""Fixtures of the checkpoint reader's tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from transformers.utils import logging


@pytest.fixture(scope="session", autouse=True)
def _no_progress_bars() -> None:
    logging.disable_progress_bar()


@pytest.fixture
def drop_privileges() -> Iterator[Callable[[], None]]:
    """A function that takes root's right to read every file away, until the end of the test."""
    user = os.geteuid()
    yield lambda: os.seteuid(65534) if user == 0 else None  # nobody
    os.seteuid(user)
