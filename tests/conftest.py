"""Shared set-up. Being here also puts tests/ on sys.path (pytest's "prepend" mode), so that tests in the
folders below can import oracle.py, expert_layers.py and guarded_memory.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def drop_privileges() -> Iterator[Callable[[], None]]:
    """A function that takes root's right to read every file away, until the end of the test."""
    user = os.geteuid()
    yield lambda: os.seteuid(65534) if user == 0 else None  # nobody
    os.seteuid(user)
