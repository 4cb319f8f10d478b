"""What the suite and its sections agree on: time that is limited, rows that are written as they are measured.

A section runs in a process of its own (suite.py), since an illegal access ends all use of the GPU in its
process, and a kernel that hangs can only be killed. So rows go to a file at once, a line of JSON each, and
the last line says how the section ended; where it is missing, the process died.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

COMPLETE, CUT_SHORT, LEFT_OUT, FAILED = "complete", "cut short", "left out", "FAILED"


class LeftOut(Exception):
    """The section cannot be measured here; says why."""


class OutOfTime(Exception):
    """The section's time is over; says what was not measured."""


@dataclass(frozen=True)
class Deadline:
    """The moment until which a section may measure."""

    at_s: float  # of time.monotonic

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.monotonic() + seconds)

    @property
    def left_s(self) -> float:
        return self.at_s - time.monotonic()

    def check(self, remaining: str) -> None:
        """Raises OutOfTime, which names what remains, if the moment has passed."""
        if self.left_s <= 0:
            raise OutOfTime(f"out of time, not measured: {remaining}")


Measure = Callable[[Deadline], Iterator[tuple[str, Any]]]  # yields (table, row); a row is a dataclass or dict


@dataclass(frozen=True)
class Section:
    """One part of the suite."""

    name: str
    weight: float  # share of the suite's time
    measure: Measure


@dataclass
class Outcome:
    """How a section ended, and its rows by table."""

    section: str
    status: str
    why: str = ""
    seconds: float = 0.0
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def record(measure: Measure, deadline: Deadline, path: Path) -> None:
    """Runs a section in this process; writes its rows, then how it ended. Raises what it did not expect."""
    with path.open("w") as file:

        def write(line: dict[str, Any]) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        try:
            for table, row in measure(deadline):
                values = asdict(row) if is_dataclass(row) and not isinstance(row, type) else row
                write({"table": table, "row": values})
        except LeftOut as reason:
            write({"end": LEFT_OUT, "why": str(reason)})
        except OutOfTime as reason:
            write({"end": CUT_SHORT, "why": str(reason)})
        except Exception as error:
            write({"end": FAILED, "why": f"{type(error).__name__}: {first_line(error)}"})
            raise
        else:
            write({"end": COMPLETE, "why": ""})


def read(section: str, path: Path, died: str, seconds: float) -> Outcome:
    """What `record` wrote; `died` says what became of the process, for a section that did not end."""
    outcome = Outcome(section, FAILED, died, seconds)
    lines = path.read_text().splitlines() if path.exists() else []
    for text in lines:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:  # the last line of a process that was killed while it wrote
            break
        if "end" in line:
            outcome.status, outcome.why = line["end"], line["why"]
        else:
            outcome.tables.setdefault(line["table"], []).append(line["row"])
    return outcome


def first_line(error: BaseException) -> str:
    """Of an error's message; torch's go on for pages."""
    return (str(error).strip().splitlines() or ["no message"])[0]
