"""Times work on the GPU by CUDA events: launched one by one ("eager"), and as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

REPEATS = 9  # of which the median counts
TURN_S = 0.004  # a repeat is at least about this long: events are accurate to a microsecond
_MOST_PER_REPEAT = 200

Work = Callable[[], object]


def seconds(work: Work, repeats: int = REPEATS) -> float:
    """Of one call, when calls follow each other; includes the host's time where that is longer."""
    work()
    once = _elapsed(work, 1)
    count = max(1, min(_MOST_PER_REPEAT, round(TURN_S / max(once, 1e-6))))
    return float(np.median([_elapsed(work, count) for _ in range(repeats)])) / count


def graph(work: Work) -> Work:
    """`work` recorded as a CUDA graph: calling the result replays it.

    Raises
    ------
    RuntimeError
        The work waits for the device or allocates outside of torch, so that it cannot be recorded.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries allocate their workspaces at the first call
        work()
        work()
    torch.cuda.current_stream().wait_stream(side)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        work()
    return recorded.replay


def _elapsed(work: Work, count: int) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    for _ in range(count):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3
