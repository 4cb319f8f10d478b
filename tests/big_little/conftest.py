"""Fixtures of the big-little tests: random models of every family in the engine, each made once per run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

import moerun.hf
from random_checkpoints import save_random_checkpoint

DEMO = Path(__file__).parents[2] / "examples" / "pycode-moe"


class Pair(NamedTuple):
    ours: PreTrainedModel
    eager: PreTrainedModel  # the experts as transformers itself runs them


@pytest.fixture(scope="session", autouse=True)
def _no_progress_bars() -> None:
    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pair]:
    """pair_of(family, **config fields) -> the same random fp32 model twice."""

    @functools.cache
    def load(family: str, **config: object) -> Pair:
        folder = tmp_path_factory.mktemp(family)
        save_random_checkpoint(family, folder, **config)
        return Pair(
            moerun.hf.from_pretrained(folder, cpu_threads=1),
            AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager"),
        )

    return load


@pytest.fixture(scope="session")
def demo() -> PreTrainedModel:
    return moerun.hf.from_pretrained(DEMO, dtype="fp32", cpu_threads=1)


@pytest.fixture(scope="session")
def demo_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(DEMO, padding_side="left")
