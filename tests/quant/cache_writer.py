"""What writes entries of the cache on disk in tests, in their process or in others: without torch."""

from __future__ import annotations

import ctypes
import multiprocessing

import numpy as np

from blob_oracle import Layout
from moerun import ExpertBlobs, LayerSpec
from moerun.quant.cache import cached_blobs
from quantised import bytes_of

SPEC = LayerSpec(num_experts=5, hidden_size=72, intermediate_size=40, top_k=2)
FORMAT = "int4_g32"
LAYOUT = Layout(FORMAT, SPEC.hidden_size, SPEC.intermediate_size, SPEC.bias)


class Writer:
    """Writes random bytes, always the same, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0
        self.content = np.random.default_rng(0).integers(0, 256, (SPEC.num_experts, LAYOUT.bytes), np.uint8)

    def __call__(self, addresses: np.ndarray) -> None:
        self.calls += 1
        for address, blob in zip(addresses, self.content, strict=True):
            memory_at(int(address), LAYOUT.bytes)[:] = blob


def memory_at(address: int, size: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def fetch(writer: Writer, key: str = "key") -> ExpertBlobs | None:
    return cached_blobs(key, SPEC, FORMAT, writer)


def write_in_child(barrier: multiprocessing.synchronize.Barrier, results: multiprocessing.Queue) -> None:
    writer = Writer()
    barrier.wait()
    blobs = fetch(writer)
    results.put(blobs is not None and bool((bytes_of(blobs, LAYOUT) == writer.content).all()))
