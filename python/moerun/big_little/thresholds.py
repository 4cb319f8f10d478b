"""Thresholds that were found, kept on disk beside the quantised experts: one small JSON file each."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from moerun.quant.cache import cache_folder

if TYPE_CHECKING:
    from moerun import Checkpoint
    from moerun.big_little.options import BigLittle
    from moerun.big_little.tune import Tuned


class Formats(NamedTuple):
    """Number formats of a model: of the experts, of the matrices around them (None: as they are saved, and in
    `dtype`), and what it computes in outside of the experts ("auto": as saved)."""

    experts: str | None = None
    dense: str | None = None
    dtype: str = "auto"


def threshold_file(checkpoint: Checkpoint, formats: Formats, options: BigLittle) -> Path | None:
    """Where the threshold of a checkpoint with these options is kept; None without a cache."""
    folder = cache_folder()
    if folder is None:
        return None
    layers = checkpoint.moe_layers
    facts = [
        checkpoint.fingerprint(layers[0]),
        formats.experts or checkpoint.expert_dtype,
        formats.dense,
        formats.dtype,
        options.little_k_of_layers(len(layers), checkpoint.spec(layers[0]).top_k),
        options.refresh,
        options.measure,
    ]
    key = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
    return folder.parent / "thresholds" / f"{key}.json"


def keep_threshold(file: Path, tuned: Tuned, max_disagreement: float) -> None:
    """Writes what was found. Raises OSError where that cannot be."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(".tmp", file.stem, file.parent)
    with os.fdopen(descriptor, "w") as out:
        json.dump({**tuned._asdict(), "max_disagreement": max_disagreement}, out)
    os.replace(temporary, file)


def kept_threshold(file: Path | None) -> float:
    """The threshold in a file of `keep_threshold`.

    Raises
    ------
    ValueError
        There is none, or it is damaged.
    """
    how = "find one with `moerun tune-threshold CKPT --text FILE` and the same options, or give a number"
    if file is None:
        raise ValueError(f"no threshold is kept, as MOERUN_CACHE is off; {how}")
    try:
        content: Any = json.loads(file.read_text())
        threshold = float(content["threshold"])
    except FileNotFoundError:
        raise ValueError(f"no threshold is kept for this checkpoint and these options; {how}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} holds no threshold ({error}); {how}") from error
    if not 0 <= threshold <= 1:
        raise ValueError(f"{file} holds the threshold {threshold}, which is not within 0 and 1; {how}")
    return threshold
