"""Fixtures of the command line's tests."""

import shutil
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "pycode-moe"


@pytest.fixture(scope="session")
def demo():
    """The trained checkpoint that the project carries. Not to be written to."""
    return DEMO


@pytest.fixture
def demo_copy(tmp_path):
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(DEMO, tmp_path / "pycode-moe"))
