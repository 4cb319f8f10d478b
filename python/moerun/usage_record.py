"""How earlier runs used the experts of a checkpoint: one small file each, for the GPU's cache to begin with.

An engine with a GPU reads the record when a checkpoint's layers are added, fills its cache with the most used
experts while the bus is idle, and adds what it has seen itself when it is closed or goes. A record may be
stale, of other texts, or lost: results never depend on it, and its experts leave the cache as others do.
"""

from __future__ import annotations

import logging
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moerun import _core, cache_files

if TYPE_CHECKING:
    from moerun.checkpoint import Checkpoint
    from moerun.engine import Engine, Layer

logger = logging.getLogger(__name__)

# What a record remembers, in tokens: older ones fade as new ones come (heuristic: a few long prompts).
_MEMORY_TOKENS = 8192


class UsageRecords:
    """The records of all checkpoints of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._core = engine._core
        self._records: dict[str, _Record] = {}
        # Also at the end of the process. It must not hold the engine.
        self._save = weakref.finalize(engine, _save_all, self._core, self._records, os.getpid())

    def add(self, checkpoint: Checkpoint, number: int, layer: Layer) -> None:
        """Tells the engine how this layer of a checkpoint was used; counts what it does from now on."""
        key = checkpoint.fingerprint(checkpoint.moe_layers[0])
        record = self._records.setdefault(key, _Record(key))
        record.layers[number] = layer._core.index, layer.spec.top_k
        counts = record.counts_of(number, layer.spec.num_experts)
        if counts.any():
            self._core.warm_start(layer._core, (counts / counts.sum()).tolist())

    def save(self) -> None:
        """Writes all records, once."""
        self._save()


class _Record:
    """The file of one checkpoint: tokens by layer and expert."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.layers: dict[int, tuple[int, int]] = {}  # number -> index in the engine, top_k
        self._found = self._load()

    def counts_of(self, number: int, num_experts: int) -> np.ndarray:
        """Tokens of each expert, float64 [E]; zeros if nothing, or nothing that fits, is known."""
        try:
            counts = np.array(self._found.get(str(number), []), np.float64)
        except (TypeError, ValueError):
            counts = np.zeros(0)
        good = counts.shape == (num_experts,) and np.isfinite(counts).all() and (counts >= 0).all()
        return counts if good else np.zeros(num_experts)

    def save(self, tokens_of_layers: list[np.ndarray]) -> None:
        """Adds what the engine's layers have done, int64 [E] each, to what the file holds now."""
        path = self._path()
        if path is None or not any(tokens_of_layers[index].any() for index, _ in self.layers.values()):
            return
        self._found = self._load()  # another process may have written meanwhile
        for number, (index, top_k) in self.layers.items():
            new = tokens_of_layers[index]
            old = self.counts_of(number, len(new))
            fading = min(1.0, _MEMORY_TOKENS * top_k / max(old.sum(), 1.0))
            self._found[str(number)] = [round(count, 3) for count in (old * fading + new).tolist()]
        try:
            cache_files.save_json(path, self._found)
        except OSError as error:
            logger.warning("%s: cannot keep how experts were used: %s", path.parent, str(error))

    def _load(self) -> dict[str, list[float]]:
        path = self._path()
        found = None if path is None else cache_files.load_json(path, "forgetting how experts were used")
        return found if isinstance(found, dict) else {}

    def _path(self) -> Path | None:
        folder = cache_files.cache_folder("usage")
        return None if folder is None else folder / f"{self.key}.json"


def _save_all(core: _core.Engine, records: dict[str, _Record], process: int) -> None:
    if not records or os.getpid() != process:  # in a child, the engine's locks may be held by nobody
        return
    tokens = [layer["expert_tokens"] for layer in core.stats()["layers"]]
    for record in records.values():
        record.save(tokens)
