"""Amounts of memory as people write them: "8GiB", 0.5, "auto"."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

_UNITS = {"B": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for suffix, base in (("", 1024), ("iB", 1024), ("B", 1000))
}


def parse_memory_size(value: Any, name: str) -> int | float | None:
    """What an option like ``gpu_cache`` says.

    Parameters
    ----------
    value
        An int, or a string such as "8GiB", "512MB" or "1000000": bytes. A float from 0 to 1, or a string such
        as "0.5" or "50%": a part of the whole. "auto".
    name
        The option, for errors.

    Returns
    -------
    int | float | None
        Bytes; a fraction from 0 to 1; None for "auto".

    Raises
    ------
    ValueError
        Anything else.
    """
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
        return int(value)
    if isinstance(value, (float, np.floating)):
        if not 0 <= value <= 1:
            raise ValueError(
                f"{name}={value} is a fraction of the device's memory and must be within 0 and 1; "
                f"write bytes as an integer or as '8GiB'"
            )
        return float(value)
    if isinstance(value, str):
        text = value.strip()
        if text == "auto":
            return None
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*|%)", text)
        if match and match[2] == "":
            return parse_memory_size(float(text) if "." in text else int(text), name)
        if match and match[2] == "%":
            return parse_memory_size(float(match[1]) / 100, name)
        if match and match[2] in _UNITS:
            return int(float(match[1]) * _UNITS[match[2]])
    raise ValueError(
        f"{name} must be bytes ('8GiB', '512MB', 1000000), a fraction (0.5, '50%') or 'auto', got {value!r}"
    )
