"""src/policy is pure: it includes standard headers for values, error.h, types.h, and itself."""

from __future__ import annotations

import re
from pathlib import Path

POLICY = Path(__file__).parents[2] / "src" / "policy"
# Headers with which a policy could read a clock, start a thread, draw at random or write a log.
IMPURE = {
    "atomic",
    "chrono",
    "ctime",
    "fstream",
    "iostream",
    "mutex",
    "random",
    "thread",
    "cstdio",
    "condition_variable",
}


def test_includes() -> None:
    files = [*POLICY.glob("*.h"), *POLICY.glob("*.cc")]
    assert files
    for path in files:
        text = path.read_text()
        for own in re.findall(r'#include "(.*)"', text):
            assert own.startswith("src/policy/") or own in ("src/error.h", "src/types.h"), (path.name, own)
        standard = set(re.findall(r"#include <(.*)>", text))
        assert not standard & IMPURE, (path.name, standard & IMPURE)
        assert not [name for name in standard if "." in name], path.name
