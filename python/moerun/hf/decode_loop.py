"""transformers' decoding loop for one sequence, with nothing in it but what a token needs.

Between two tokens, generate() builds masks, positions and inputs anew, and asks every criterion by small
operations of torch. That is 0.2 ms of a small model, and 0.8 ms behind one whose weights have pushed Python
out of the caches: a sixth of a step of four layers of Qwen3-30B-A3B. Here a greedy token is one call to the
core and a handful of bytecodes. Batches, padding, beams, scores that are to be returned, and whatever else a
step cannot do by itself (model_step.py) go through transformers' own loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

if TYPE_CHECKING:
    from transformers import GenerationConfig, StoppingCriteriaList

    from moerun.hf.model_step import ModelStep

MOST_TOKENS = 512  # that caches get room for at a time
_NOT_ALONE = ("return_dict_in_generate", "prefill_chunk_size", "is_assistant")  # of a generation config
# Options of the model.
_KNOWN = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}


class Stop:
    """Whether a sequence ends with a token: transformers' criteria, the usual ones without tensors."""

    def __init__(self, criteria: StoppingCriteriaList) -> None:
        self.ends: set[int] = set()
        self.max_length: int | None = None
        self.others = []
        for criterion in criteria:
            if type(criterion) is EosTokenCriteria:
                self.ends.update(criterion.eos_token_id.flatten().tolist())
            elif type(criterion) is MaxLengthCriteria and not _warns(criterion):
                length = criterion.max_length
                self.max_length = length if self.max_length is None else min(length, self.max_length)
            else:
                self.others.append(criterion)

    def __call__(self, ids: torch.Tensor, length: int, token: int) -> bool:
        """`token` is the last of the `length` first in ids [1, room]."""
        if token in self.ends or length == self.max_length:
            return True
        return any(bool(criterion(ids[:, :length], None).all()) for criterion in self.others)


def _warns(criterion: MaxLengthCriteria) -> bool:
    longest = criterion.max_position_embeddings
    return longest is not None and criterion.max_length > longest


class Choice:
    """The next token of logits: processed as transformers does it, then the largest, or a sample."""

    def __init__(self, processors: Any, do_sample: bool) -> None:
        self.is_plain = not processors and not do_sample  # just the largest
        self._processors = processors
        self._do_sample = do_sample

    def __call__(self, ids: torch.Tensor, logits: torch.Tensor) -> int:
        """ids [1, length] so far, logits [1, V]."""
        scores = self._processors(ids, logits.to(copy=True, dtype=torch.float32))
        if self._do_sample:
            return int(torch.multinomial(torch.nn.functional.softmax(scores, dim=-1), num_samples=1))
        return int(torch.argmax(scores, dim=-1))


def may_decode(
    step: ModelStep, ids: torch.Tensor, stop: Stop, config: GenerationConfig, options: dict[str, Any]
) -> bool:
    """Whether decode() does what transformers' loop would with one sequence and these options."""
    cache, mask = options.get("past_key_values"), options.get("attention_mask")
    if ids.shape[0] != 1 or cache is None or stop.max_length is None or options.get("use_cache") is not True:
        return False
    if any(getattr(config, name, None) for name in _NOT_ALONE):
        return False
    if any(options[name] is not None for name in options.keys() - _KNOWN):
        return False
    if mask is not None and not (mask.ndim == 2 and mask.shape == ids.shape and bool(mask.all())):
        return False
    positions = options.get("position_ids")
    if positions is not None and not torch.equal(positions, torch.arange(ids.shape[1])[None]):
        return False
    known = cache.get_seq_length()
    return known < ids.shape[1] < stop.max_length and step.may_run(cache, known, stop.max_length)


def decode(
    model: Any,
    step: ModelStep,
    ids: torch.Tensor,
    choose: Choice,
    stop: Stop,
    cache: Any,
    show: Callable[[torch.Tensor], Any] | None,
) -> torch.Tensor:
    """Continues ids [1, length] until `stop` says so; `show` is given every token, int64 [1]."""
    length = ids.shape[1]
    assert stop.max_length is not None
    room = ids.new_empty((1, stop.max_length))
    room[:, :length] = ids
    prompt = ids[:, cache.get_seq_length() :]
    token = choose(
        ids, model(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
    )

    def accept(token: int) -> bool:
        """Whether there are more to come."""
        nonlocal length
        room[0, length] = token
        length += 1
        if show is not None:
            show(room[0, length - 1 : length].clone())
        return not stop(room, length, token)

    more = accept(token)
    while more:
        tokens = min(stop.max_length - length, MOST_TOKENS)
        with step.run(cache, tokens) as run:
            for _ in range(tokens):
                largest = run.next(token)
                token = largest if choose.is_plain else choose(room[:, :length], run.logits[None])
                more = accept(token)
                if not more:
                    break
    return room[:, :length]
