"""From what a user gives as a prompt to token ids."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt as it is, from the command line, from stdin ("-") or from a file.

    Raises
    ------
    ValueError
        It is empty, or not text in UTF-8.
    OSError
        The file cannot be read.
    """
    source = f"--prompt-file {file}" if file else "stdin" if prompt == "-" else "the command line"
    try:
        content = file.read_text("utf-8") if file else sys.stdin.read() if prompt == "-" else str(prompt)
        content.encode("utf-8")  # bytes of the command line that are no text come as surrogates
    except UnicodeError as error:
        raise ValueError(f"the prompt from {source} is not UTF-8 text: {error}") from error
    if not content:
        raise ValueError(f"the prompt from {source} is empty; the model needs at least one token to continue")
    return content


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str, chat: bool) -> torch.Tensor:
    """Token ids of the prompt, ``[1, tokens]`` int64; with ``chat``, as the user's turn in the chat template.

    Raises
    ------
    ValueError
        There is no chat template, or the prompt has no tokens.
    """
    if chat and not tokenizer.chat_template:
        raise ValueError(
            "this checkpoint's tokenizer has no chat template; leave --chat out to continue the text"
        )
    if chat:
        turns = [{"role": "user", "content": prompt}]
        prompt = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    ids = tokenizer(prompt, add_special_tokens=not chat, return_tensors="pt").input_ids
    if ids.shape[1] == 0:
        raise ValueError("the tokenizer makes no tokens of this prompt")
    return ids
