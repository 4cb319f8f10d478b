"""EngineConfig: how an engine runs, checked when it is written down."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from moerun import _core
from moerun.memory_size import parse_memory_size

# More than any machine has cores; OpenMP runtimes end the process when they cannot start a thread.
MOST_THREADS = 1024
DEVICES = ("auto", "cpu", "cuda")
PREFETCHES = ("impact", "none")
PREDICTORS = ("corrected", "gates", "history")
STORES = ("auto", "pinned", "staged")
CALIBRATIONS = ("once", "cached", "off")
STREAM_WAITS = ("auto", "never")


@dataclass(frozen=True)
class EngineConfig:
    """How an engine runs.

    Parameters
    ----------
    device
        "cpu"; "cuda" for CPU and GPU together; "auto" for a GPU if there is one that can be used.
    gpu_cache
        Device memory for experts: bytes (an int, or "8GiB"), a fraction of the device's memory (0.5, "50%"),
        or "auto": what is free when the engine is made, less an eighth of all.
    schedule
        Who runs an expert: "balanced" (ours), "hybrimoe" (arXiv 2504.05897), "static" (cached ones on the
        GPU, others on the CPU), "ondemand" (all on the GPU, copied when needed), "gpu" (all on the GPU and
        all cached), "cpu"; others are in moerun.policy.METHODS.
    cache
        Which expert leaves the cache: "mrs" (arXiv 2504.05897, section IV-D), "lru", "lfu" or "recent".
    prefetch
        "impact" copies experts that are predicted while the bus is idle; "none" does not.
    predictor
        Who predicts: "corrected", the next three layers' routers on this layer's hidden state plus the mean
        difference to theirs, which is learned as the model runs; "gates", the same without it; "history", the
        experts that each layer used most lately. The first two come through Layer.hint, which
        moerun.hf.from_pretrained calls; hints of others count as well.
    store
        Host memory of the experts of an engine with a GPU: "pinned" (page-locked, where they lie if they are
        quantised already, else in a copy; an error if the system refuses), "staged" (ordinary memory, copied
        through small page-locked buffers), or "auto" (pinned, else staged).
    warm_start
        Whether the GPU's cache begins with the experts that earlier runs of the same checkpoint used most.
        How often each was used is kept in $MOERUN_CACHE.
    calibrate
        What the planner knows of an expert's costs at first. "once": what was timed on this machine, kept in
        $MOERUN_CACHE, and timed when a layer is added if it is not there, which takes seconds; "cached": only
        what is there; "off": a guess. Costs are learned from what is observed in any case. None means the
        environment variable MOERUN_CALIBRATE, or "once". Engines without a GPU have nothing to plan.
    stream_wait
        How a stream of the caller's comes behind a batch of arrays on the GPU. "auto": it waits, on the
        device, for a value in memory that the batch will write, and the caller waits for nothing, wherever
        that is known not to stop the engine; "never": the caller is held up until the batch is enqueued, the
        CPU's share included, and the stream waits for an event. The result is the same.
    time_every
        The GPU's work is timed in every so manieth batch that it has a share of, for the statistics, the
        timeline and the cost model: 1 is each. Timing is a few calls to the driver for every launch and copy.
    cpu_threads
        Threads that compute, the calling one included; None means all cores that this process may use.
    isa
        Row of the kernel table: "amx", "avx512_bf16", "avx512_vnni", "avx512", "avx_vnni", "avx2" or "ref";
        None means the environment variable MOERUN_ISA, or the best that this machine has.

    Raises
    ------
    ValueError
        An unknown name, an amount of memory that is none, or threads outside of 1 .. MOST_THREADS.
    """

    device: str = "auto"
    gpu_cache: int | float | str = "auto"
    schedule: str = "balanced"
    cache: str = "mrs"
    prefetch: str = "impact"
    predictor: str = "corrected"
    store: str = "auto"
    warm_start: bool = True
    calibrate: str | None = None
    stream_wait: str = "auto"
    time_every: int = 1
    cpu_threads: int | None = None
    isa: str | None = None

    def __post_init__(self) -> None:
        known = {
            "device": DEVICES,
            "schedule": _core.policy.METHODS,
            "cache": _core.policy.CACHE_POLICIES,
            "prefetch": PREFETCHES,
            "predictor": PREDICTORS,
            "store": STORES,
            "stream_wait": STREAM_WAITS,
        }
        if self.calibrate is not None:
            known["calibrate"] = CALIBRATIONS
        for option, names in known.items():
            if getattr(self, option) not in names:
                raise ValueError(f"{option} {getattr(self, option)!r} is unknown; known: {', '.join(names)}")
        if not isinstance(self.warm_start, bool):
            raise ValueError(f"warm_start must be True or False, got {self.warm_start!r}")
        parse_memory_size(self.gpu_cache, "gpu_cache")
        if isinstance(self.time_every, bool) or not isinstance(self.time_every, int) or self.time_every < 1:
            raise ValueError(f"time_every must be a positive integer, got {self.time_every!r}")
        threads = self.cpu_threads
        if threads is not None and (
            isinstance(threads, bool) or not isinstance(threads, (int, np.integer)) or threads < 1
        ):
            raise ValueError(f"cpu_threads must be a positive integer or None, got {threads!r}")
        if threads is not None and threads > MOST_THREADS:
            raise ValueError(f"cpu_threads is {threads}, but an engine has at most {MOST_THREADS}")
        if self.isa is not None and not isinstance(self.isa, str):
            raise ValueError(f"isa must be a string or None, got {self.isa!r}")

    @property
    def calibration(self) -> str:
        """One of CALIBRATIONS: `calibrate`, or what the environment says.

        Raises
        ------
        ValueError
            MOERUN_CALIBRATE names none of them.
        """
        chosen = self.calibrate or os.environ.get("MOERUN_CALIBRATE") or "once"
        if chosen not in CALIBRATIONS:
            raise ValueError(f"MOERUN_CALIBRATE is {chosen!r}; known: {', '.join(CALIBRATIONS)}")
        return chosen
