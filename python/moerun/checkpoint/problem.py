"""The one shape of the reader's errors: which file, which tensor or field, what was expected and found."""

from __future__ import annotations

import reprlib
from os import PathLike
from typing import Any

from moerun.errors import CheckpointError

_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = 200
_shortener.maxlong = 40


def shown(value: Any) -> str:
    """`repr` of a value that came out of a file, cut to a length that fits an error message."""
    return _shortener.repr(value)


def is_text(text: str) -> bool:
    """False for lone surrogates, which JSON escapes can spell but nothing can print."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def problem(
    file: str | PathLike[str], where: str, expected: str, found: str, fix: str = ""
) -> CheckpointError:
    """Returns an error "FILE: WHERE: expected EXPECTED, found FOUND. FIX"; WHERE and FIX may be empty."""
    message = f"{file}: {where + ': ' if where else ''}expected {expected}, found {found}"
    return CheckpointError(f"{message}. {fix}" if fix else message)
