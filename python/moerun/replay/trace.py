"""A routing trace: which experts every token chose in every layer, with all router scores.

Written by `moerun trace` from a real model (record.py) and by the generator (synthetic.py). One npz file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PREFILL, DECODE = 0, 1


@dataclass(frozen=True)
class Trace:
    """Routing of T tokens through L layers of E experts, k of which each token uses.

    Attributes
    ----------
    model
        Name of the model, for tables.
    ids
        ``[T, L, k]`` uint16: the experts chosen, the favourite first.
    scores
        ``[T, L, E]`` float16: the router's scores (softmax or sigmoid) of all experts.
    step
        ``[T]`` int32, not falling: tokens with equal numbers went through the model together.
    phase
        ``[T]`` uint8: ``PREFILL`` or ``DECODE``.
    predicted
        ``[T, L, D, E]`` float16 or None: at layer l, the scores of layer l + 1 + d's gate on the hidden state
        that layer l's own gate saw. Beyond the last layer: zeros.
    corrected
        As ``predicted``, with the mean difference between the two gates' inputs added to the hidden state
        (DALI); the mean is a running one over the tokens before. None if it was not recorded.
    """

    model: str
    ids: np.ndarray
    scores: np.ndarray
    step: np.ndarray
    phase: np.ndarray
    predicted: np.ndarray | None = None
    corrected: np.ndarray | None = None

    def __post_init__(self) -> None:
        tokens, layers, experts = self.scores.shape
        expected: list[tuple[str, np.ndarray | None, tuple[int | None, ...]]] = [
            ("ids", self.ids, (tokens, layers, None)),
            ("step", self.step, (tokens,)),
            ("phase", self.phase, (tokens,)),
            ("predicted", self.predicted, (tokens, layers, None, experts)),
            ("corrected", self.corrected, (tokens, layers, None, experts)),
        ]
        for name, array, shape in expected:
            if array is None:
                continue
            if array.ndim != len(shape) or any(
                want not in (None, have) for want, have in zip(shape, array.shape, strict=True)
            ):
                raise ValueError(
                    f"trace: {name} has shape {array.shape}, but scores {self.scores.shape} ask for {shape}"
                )
        if tokens and int(self.ids.max()) >= experts:
            raise ValueError(f"trace: ids contains expert {int(self.ids.max())} of {experts}")
        if np.any(np.diff(self.step) < 0):
            raise ValueError("trace: step falls; sort the tokens by step")

    @property
    def num_tokens(self) -> int:
        return int(self.scores.shape[0])

    @property
    def num_layers(self) -> int:
        return int(self.scores.shape[1])

    @property
    def num_experts(self) -> int:
        return int(self.scores.shape[2])

    @property
    def top_k(self) -> int:
        return int(self.ids.shape[2])

    def steps(self) -> list[np.ndarray]:
        """The tokens (indices) of each step, in order."""
        boundaries = np.flatnonzero(np.diff(self.step)) + 1
        return np.split(np.arange(self.num_tokens), boundaries) if self.num_tokens else []

    def loads(self, tokens: np.ndarray, layer: int, top_k: int | None = None) -> np.ndarray:
        """Tokens per expert, int32 ``[E]``, of some tokens in one layer, by their first ``top_k`` ids."""
        ids = self.ids[tokens, layer, :top_k]
        return np.bincount(ids.ravel(), minlength=self.num_experts).astype(np.int32)

    def save(self, path: str | Path) -> None:
        """Write the trace as a compressed npz file."""
        arrays: dict[str, Any] = {
            "format": np.array("moerun-trace-1"),
            "model": np.array(self.model),
            "ids": self.ids.astype(np.uint16),
            "scores": self.scores.astype(np.float16),
            "step": self.step.astype(np.int32),
            "phase": self.phase.astype(np.uint8),
        }
        for name in ("predicted", "corrected"):
            array = getattr(self, name)
            if array is not None:
                arrays[name] = array.astype(np.float16)
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a trace.

        Raises
        ------
        FileNotFoundError
            No such file.
        ValueError
            Not a trace, or its arrays do not fit together.
        """
        not_a_trace = f"{path} is no routing trace; record one with `moerun trace`"
        try:
            file = np.load(path, allow_pickle=False)
        except ValueError as error:  # numpy's answer to anything that is not its own format
            raise ValueError(not_a_trace) from error
        if not isinstance(file, np.lib.npyio.NpzFile) or str(file.get("format")) != "moerun-trace-1":
            raise ValueError(not_a_trace)
        with file:
            return cls(
                model=str(file["model"]),
                ids=file["ids"],
                scores=file["scores"],
                step=file["step"],
                phase=file["phase"],
                predicted=file.get("predicted"),
                corrected=file.get("corrected"),
            )
