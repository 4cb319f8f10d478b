"""Sections in processes of their own: none takes another with it, and what was measured is kept."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stub_sections import SECTIONS

from bench.gpu.section import COMPLETE, CUT_SHORT, FAILED, LEFT_OUT, Deadline, OutOfTime, read
from bench.gpu.suite import run_all, run_one, share

MODULE = "stub_sections"


@pytest.fixture(autouse=True)
def stub_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


def numbers(tables: dict[str, list[dict[str, int]]]) -> list[int]:
    return [row["n"] for row in tables.get("numbers", [])]


def test_one_that_fails_loses_no_other() -> None:
    names = ("raises", "crashes", "left_out", "good")
    outcomes = list(run_all([SECTIONS[name] for name in names], 60, MODULE))
    assert [outcome.section for outcome in outcomes] == list(names)
    assert [outcome.status for outcome in outcomes] == [FAILED, FAILED, LEFT_OUT, COMPLETE]
    whys = ["RuntimeError: no luck", "its process ended with SIGKILL", "needs what is not here", ""]
    assert [outcome.why for outcome in outcomes] == whys
    assert [numbers(outcome.tables) for outcome in outcomes] == [[3], [4], [], [1, 2]]


def test_one_that_hangs_is_ended_with_what_it_started() -> None:
    outcome = run_one("hangs", 3, MODULE, grace_s=0)
    assert outcome.status == FAILED
    assert outcome.why == "killed: still running 0 s after its 3 s"
    assert numbers(outcome.tables) == [5]
    assert gone(outcome.tables["numbers"][0]["pid"])


def gone(pid: int) -> bool:
    """Whether a process that was killed has ended; nobody may have collected it yet."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_one_that_is_out_of_time_says_what_it_left() -> None:
    outcome = run_one("endless", 0.3, MODULE)
    assert outcome.status == CUT_SHORT
    assert outcome.why == "out of time, not measured: what comes after the last number"
    assert set(numbers(outcome.tables)) <= {6}


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text('{"table": "numbers", "row": {"n": 1}}\n{"table": "numb')
    outcome = read("some", path, "died", 1.0)
    assert (outcome.status, outcome.why, numbers(outcome.tables)) == (FAILED, "died", [1])


def test_one_that_wrote_nothing_failed(tmp_path: Path) -> None:
    assert read("some", tmp_path / "nothing", "died", 1.0).status == FAILED


def test_a_deadline_that_has_passed_is_an_error() -> None:
    Deadline.after(60).check("nothing")
    with pytest.raises(OutOfTime, match="not measured: the rest"):
        Deadline.after(0).check("the rest")


@given(
    seconds=st.floats(0, 1000),
    sections=st.lists(st.tuples(st.floats(0.1, 100), st.floats(0, 1)), min_size=1, max_size=8),
)
def test_shares_use_up_the_time_and_no_more(seconds: float, sections: list[tuple[float, float]]) -> None:
    """Each section takes a part of what it gets; the last may have all that is left."""
    left = seconds
    for i, (_, part) in enumerate(sections):
        mine = share(left, [weight for weight, _ in sections[i:]])
        assert 0 <= mine <= left * (1 + 1e-9)
        if i == len(sections) - 1:
            assert mine == pytest.approx(left)
        left -= part * mine
    assert share(-1.0, [1.0]) == 0
