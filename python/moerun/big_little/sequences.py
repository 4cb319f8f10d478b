"""The sequences of a run: they grow, perhaps unevenly, until they are finished; the streamer sees them grow.

Logits processors and stopping criteria are transformers' own and made for a batch of sequences of one length,
whose rows they may know by number. So each length that occurs gets a call with all rows, of which the rows of
that length count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import LogitsProcessorList, StoppingCriteriaList


class Sequences:
    """A batch of prompts and what is generated after them.

    Parameters
    ----------
    prompts
        int64 [B, columns], padding included.
    max_length
        Columns that there may be at most.
    padding
        The token that fills a finished sequence up.
    streamer
        transformers' streamer, or None. It gets a column [B] once every sequence has that token.
    """

    def __init__(
        self,
        prompts: torch.Tensor,
        max_length: int,
        padding: int,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        streamer: Any = None,
    ) -> None:
        batch, columns = prompts.shape
        self._ids = prompts.new_full((batch, max(max_length, columns)), padding)
        self._ids[:, :columns] = prompts
        self._processors = processors
        self._criteria = criteria
        self._streamer = streamer
        self._prompt_length = self._shown = columns
        self.lengths = [columns] * batch
        self.unfinished = torch.ones(batch, dtype=torch.bool, device=prompts.device)

    @property
    def ids(self) -> torch.Tensor:
        """int64 [B, columns of the longest], shorter ones filled up."""
        return self._ids[:, : max(self.lengths)]

    @property
    def new_tokens(self) -> int:
        """Tokens that were generated, over all sequences."""
        return sum(self.lengths) - self._prompt_length * len(self.lengths)

    @property
    def going(self) -> list[int]:
        """The numbers of the unfinished sequences."""
        return self.unfinished.nonzero()[:, 0].tolist()

    @property
    def room(self) -> int:
        """How many tokens the shortest unfinished sequence may still gain."""
        return self._ids.shape[1] - min(self.lengths[row] for row in self.going) if self.going else 0

    @property
    def newest(self) -> torch.Tensor:
        """The last token of every sequence, int64 [B]."""
        last = torch.tensor(self.lengths, device=self._ids.device) - 1
        return self._ids.gather(1, last[:, None])[:, 0]

    def scores(self, logits: torch.Tensor, ahead: Sequence[list[int]] | None = None) -> torch.Tensor:
        """What the logits processors make of logits [B, V] after the sequences and the tokens `ahead`."""
        if not self._processors:
            return logits
        ids, lengths = self._ids, self.lengths
        if ahead is not None:
            lengths = [length + len(tokens) for length, tokens in zip(lengths, ahead, strict=True)]
            ids = torch.nn.functional.pad(ids, (0, max(map(len, ahead))))
            for row, tokens in enumerate(ahead):
                ids[row, self.lengths[row] : lengths[row]] = ids.new_tensor(tokens)
        scores = torch.empty_like(logits)
        for length, rows in _by_length(lengths, range(len(lengths))).items():
            processed = self._processors(ids[:, :length], logits.clone())  # type: ignore[arg-type]
            scores[rows] = processed[rows]
        return scores

    def append(self, tokens: Sequence[list[int]]) -> list[int]:
        """Adds tokens[b] to sequence b until it is finished; returns how many each has taken."""
        taken = [0] * len(tokens)
        for column in range(max(map(len, tokens))):
            grown = [row for row in self.going if column < len(tokens[row])]
            for row in grown:
                self._ids[row, self.lengths[row]] = tokens[row][column]
                self.lengths[row] += 1
                taken[row] += 1
            for length, rows in _by_length(self.lengths, grown).items():
                over = torch.as_tensor(self._criteria(self._ids[:, :length], None))  # type: ignore[arg-type]
                full = length == self._ids.shape[1]
                self.unfinished[rows] = ~over.expand(len(tokens))[rows] & (not full)
        return taken

    def show(self) -> None:
        """Gives the streamer what it has not seen."""
        complete = min((self.lengths[row] for row in self.going), default=max(self.lengths))
        if self._streamer is not None:
            for column in range(self._shown, complete):
                self._streamer.put(self._ids[:, column].cpu())
        self._shown = complete

    def end(self) -> None:
        """Tells the streamer that nothing follows."""
        if self._streamer is not None:
            self._streamer.end()


def _by_length(lengths: Sequence[int], rows: Sequence[int]) -> dict[int, list[int]]:
    """Of the sequences `rows`: those of each length that occurs."""
    found = defaultdict(list)
    for row in rows:
        found[lengths[row]].append(row)
    return found
