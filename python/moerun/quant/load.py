"""One layer of a checkpoint in another number format: from the cache, or quantised now and cached."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from moerun.layer_spec import ExpertBlobs
from moerun.quant.blobs import layout_of
from moerun.quant.cache import cached_blobs
from moerun.quant.quantise import quantise_into, quantise_layer

if TYPE_CHECKING:
    from moerun.checkpoint import Checkpoint


def load_quantised(
    checkpoint: Checkpoint,
    layer_index: int,
    weight_format: str,
    threads: int | None = None,
    isa: str | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> ExpertBlobs:
    """Returns the experts of one layer in `weight_format`.

    What was quantised before is mapped from the cache ($MOERUN_CACHE); otherwise it is quantised from the
    checkpoint and put there. `on_progress` is called with numbers of experts that have become ready.

    Raises
    ------
    ValueError
        The layer has no experts, or a weight that the format cannot hold.
    CheckpointError
        The checkpoint cannot be read.
    """
    spec = checkpoint.spec(layer_index)
    written = 0

    def advance(experts: int) -> None:
        nonlocal written
        written += experts
        if on_progress is not None:
            on_progress(experts)

    def write(addresses: np.ndarray) -> None:
        layout = layout_of(spec, weight_format)
        quantise_into(layout, checkpoint.plain_experts(layer_index), addresses, threads, isa, advance)

    cached = cached_blobs(checkpoint.fingerprint(layer_index), spec, weight_format, write)
    if cached is None:
        # No cache here, or what was written could not be read back.
        return quantise_layer(
            spec, checkpoint.plain_experts(layer_index), weight_format, threads, isa, advance
        )
    advance(spec.num_experts - written)
    return cached
