"""Fixtures of the checkpoint reader's tests."""

from __future__ import annotations

import pytest
from transformers.utils import logging


@pytest.fixture(scope="session", autouse=True)
def _no_progress_bars() -> None:
    logging.disable_progress_bar()
