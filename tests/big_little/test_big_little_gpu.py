"""Big-little experts on CPU and GPU, on the stand-in driver: the tokens are those of the CPU alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import moerun
import moerun.hf
from fake_driver import FakeDriver
from random_prompts import padded

DEMO = Path(__file__).parents[2] / "examples" / "pycode-moe"
OPTIONS: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}


@pytest.mark.parametrize("schedule", ["ondemand", "balanced"])
@pytest.mark.parametrize(
    "big_little",
    [moerun.BigLittle(threshold=0.6, refresh=3), moerun.BigLittle(lossless=True)],
    ids=["fallback", "lossless"],
)
def test_tokens_are_those_of_the_cpu(
    gpu: FakeDriver, demo: PreTrainedModel, big_little: moerun.BigLittle, schedule: str
) -> None:
    settings = {"device": "cuda", "gpu_cache": "2MiB", "schedule": schedule, "cpu_threads": 1}
    model = moerun.hf.from_pretrained(DEMO, dtype="fp32", **settings)
    prompt = padded([9], seed=2)
    ours = moerun.generate(model, prompt, big_little, **OPTIONS)
    alone = moerun.generate(demo, prompt, big_little, **OPTIONS)
    assert torch.equal(ours.sequences, alone.sequences)
    assert ours.little == alone.little
    stats = model.moerun_engine.stats()["gpu"]
    assert stats["gpu_steps"] > 0
    assert stats["hits"] > 0
    model.moerun_engine.close()
