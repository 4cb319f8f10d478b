"""From generated tokens to text on a terminal: whole characters as soon as they are complete, and when.

TokenStream is what transformers calls a streamer: generate() hands it the prompt, then each new token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

REPLACEMENT = "\ufffd"  # what decoders make of bytes that are not, or not yet, a character
CONTEXT_TOKENS = 6  # of the prompt, so that a decoder knows that the first new token does not begin the text
LONGEST_CHARACTER = 4  # bytes of UTF-8, and a token is at least one byte


class Detokenizer:
    """Text of a growing sequence of tokens, in pieces that are never half a character.

    One token's text depends on its neighbours (spaces, bytes of one character), so a window of recent tokens
    is decoded with and without the new ones, and the difference is the new text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int]) -> None:
        self._decode = decode
        self._tokens = list(prompt[-CONTEXT_TOKENS:])
        self._window = 0  # where the window begins
        self._shown = len(self._tokens)  # tokens whose text has been given out

    def add(self, token: int) -> str:
        """Text that is complete now that ``token`` has come; may be empty."""
        self._tokens.append(token)
        text = self._rest()
        if text.endswith(REPLACEMENT) and len(self._tokens) - self._shown < LONGEST_CHARACTER:
            return ""
        self._window, self._shown = self._shown, len(self._tokens)
        return text

    def finish(self) -> str:
        """Text of an unfinished last character, if there is one."""
        return self._rest()

    def _rest(self) -> str:
        known = self._decode(self._tokens[self._window : self._shown])
        return self._decode(self._tokens[self._window :])[len(known) :]


@dataclass(frozen=True)
class Timing:
    """How long one generation took, in seconds. The first new token comes out of the prefill."""

    prompt_tokens: int
    new_tokens: int
    prefill_s: float  # until the first new token
    decode_s: float  # for the others

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.prompt_tokens / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """0 if fewer than two tokens were generated."""
        return (self.new_tokens - 1) / self.decode_s if self.decode_s > 0 else 0.0


class TokenStream:
    """Writes the text of one sequence while it is generated, and takes the time.

    Parameters
    ----------
    decode
        Text of a sequence of token ids.
    write
        Called with every piece of text; what it raises ends the generation.
    on_first
        Called once, when the first new token is out: the prefill is over.
    clock
        Seconds, increasing.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        write: Callable[[str], object],
        on_first: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._decode, self._write, self._on_first, self._clock = decode, write, on_first, clock
        self._detokenizer: Detokenizer | None = None
        self._prompt_tokens = 0
        self._times: list[float] = []  # when the prompt went in, then when each new token came out
        self.text = ""

    def put(self, token_ids: torch.Tensor) -> None:
        """Take the prompt ``[1, tokens]`` at the first call, new tokens ``[1]`` after it."""
        ids = token_ids.flatten().tolist()
        self._times.append(self._clock())
        if self._detokenizer is None:
            self._prompt_tokens = len(ids)
            self._detokenizer = Detokenizer(self._decode, ids)
            return
        if len(self._times) == 2:
            self._on_first()
        self._emit("".join(map(self._detokenizer.add, ids)))

    def end(self) -> None:
        """Write what is left."""
        if self._detokenizer is not None:
            self._emit(self._detokenizer.finish())

    def timing(self) -> Timing:
        """Times of what has been generated so far."""
        start, *tokens = self._times or [0.0]
        first, last = (tokens[0], tokens[-1]) if tokens else (start, start)
        return Timing(self._prompt_tokens, len(tokens), first - start, last - first)

    def _emit(self, text: str) -> None:
        if text:
            self.text += text
            self._write(text)
