"""Every family, on random checkpoints saved by transformers: logits and greedy text as with eager experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import moerun.hf
from random_checkpoints import FAMILIES

NEW_TOKENS = 64


class Pair(NamedTuple):
    ours: PreTrainedModel
    eager: PreTrainedModel  # the experts as transformers itself runs them, expert by expert


def load_pair(folder: Path, dtype: torch.dtype) -> Pair:
    return Pair(
        moerun.hf.from_pretrained(folder, dtype=dtype, cpu_threads=1),
        AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, experts_implementation="eager"),
    )


@pytest.fixture(scope="module", params=FAMILIES)
def fp32(request: pytest.FixtureRequest, random_checkpoint: Callable[..., Path]) -> Pair:
    return load_pair(random_checkpoint(request.param), torch.float32)


def prompts(rows: int, tokens: int) -> torch.Tensor:
    """Random ids without the special ones, [rows, tokens]."""
    return torch.randint(3, 128, (rows, tokens), generator=torch.Generator().manual_seed(rows))


def greedy(model: PreTrainedModel, **inputs: torch.Tensor) -> torch.Tensor:
    return model.generate(**inputs, do_sample=False, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS)


@torch.no_grad()
def test_logits(fp32: Pair) -> None:
    ids = prompts(3, 29)
    torch.testing.assert_close(fp32.ours(ids).logits, fp32.eager(ids).logits, rtol=0, atol=1e-4)


def test_greedy_text(fp32: Pair) -> None:
    ids = prompts(1, 11)
    ours = greedy(fp32.ours, input_ids=ids)
    assert ours.shape[1] == 11 + NEW_TOKENS
    assert torch.equal(ours, greedy(fp32.eager, input_ids=ids))


def test_greedy_text_of_a_batch_with_left_padding(fp32: Pair) -> None:
    ids, mask = prompts(3, 13), torch.ones(3, 13, dtype=torch.int64)
    for row, padding in enumerate((0, 4, 9)):
        ids[row, :padding], mask[row, :padding] = fp32.ours.config.pad_token_id, 0
    ours = greedy(fp32.ours, input_ids=ids, attention_mask=mask)
    assert torch.equal(ours, greedy(fp32.eager, input_ids=ids, attention_mask=mask))


@pytest.fixture(scope="module", params=FAMILIES)
def bf16_folder(request: pytest.FixtureRequest, random_checkpoint: Callable[..., Path]) -> Path:
    # Fused, as transformers 5 holds experts; the fp32 checkpoints have the families' published layout.
    return random_checkpoint(request.param, dtype="bf16", fused=True)


@torch.no_grad()
def test_bf16_checkpoint_computed_in_fp32(bf16_folder: Path) -> None:
    ours, eager = load_pair(bf16_folder, torch.float32)
    ids = prompts(2, 29)
    torch.testing.assert_close(ours(ids).logits, eager(ids).logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_bf16_is_as_good_as_eager_bf16(bf16_folder: Path) -> None:
    """Two correct implementations differ by their roundings; the model in fp32 is the measure of both."""
    oracle = AutoModelForCausalLM.from_pretrained(
        bf16_folder, dtype=torch.float32, experts_implementation="eager"
    )
    ids = prompts(2, 29)
    expected = oracle(ids).logits

    def error(model: PreTrainedModel) -> float:
        return (model(ids).logits.float() - expected).square().mean().sqrt().item()

    ours, eager = load_pair(bf16_folder, torch.bfloat16)
    assert error(ours) <= 1.5 * error(eager)
