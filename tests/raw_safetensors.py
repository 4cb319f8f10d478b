"""Writes safetensors files byte by byte, so that tests can have the broken ones that no library writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def entry(dtype: str, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    """One tensor's description in a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def safetensors_bytes(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    """A file as bytes. `header` is bytes or anything JSON; `length` replaces its true length up front."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def write_safetensors(path: Path, header: Any, body: bytes = b"", length: int | None = None) -> Path:
    """Writes `safetensors_bytes` and returns the path."""
    path.write_bytes(safetensors_bytes(header, body, length))
    return path
