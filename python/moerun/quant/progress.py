"""The progress bar of quantising: on a terminal, and only once there is something to wait for."""

from __future__ import annotations

from types import TracebackType
from typing import Any


class ExpertsBar:
    """Counts experts. A context manager; call it with the number of experts that have become ready.

    Shown after a second: what comes from the cache is there before, and leaves no trace.
    """

    def __init__(self, total: int, target: str) -> None:
        from tqdm import tqdm

        self._bar: Any = tqdm(
            total=total,
            desc=f"experts to {target}",
            unit="expert",
            disable=None,  # where stderr is no terminal
            delay=1.0,
        )

    def __call__(self, experts: int) -> None:
        self._bar.update(experts)

    def __enter__(self) -> ExpertsBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
