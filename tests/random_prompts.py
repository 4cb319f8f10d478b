"""Random prompts for models of random_checkpoints.py."""

from __future__ import annotations

import torch

PAD = 2


def padded(lengths: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random prompts of these lengths, padded on the left: what a tokenizer returns."""
    generator = torch.Generator().manual_seed(seed)
    columns = max(lengths)
    ids = torch.randint(3, 128, (len(lengths), columns), generator=generator)
    mask = torch.ones_like(ids)
    for row, length in enumerate(lengths):
        ids[row, : columns - length], mask[row, : columns - length] = PAD, 0
    return {"input_ids": ids, "attention_mask": mask}
