"""Files of the caches on disk ($MOERUN_CACHE): where they lie, and how they come to be complete.

A file is written under a temporary name and renamed when it is whole, so whatever is found under its own name
was finished; two processes that write the same one write the same, and the last rename counts. What a file
holds, and how damage is found, is the matter of each cache (quant/cache.py, kernels/cache.py); small files
are a line of JSON and its checksum (save_json).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_ABANDONED_SECONDS = 86400  # a temporary file this old has lost its process


def cache_folder(kind: str) -> Path | None:
    """Where files of one kind are kept, in $MOERUN_CACHE, by default ~/.cache/moerun; None if it is "off"."""
    chosen = os.environ.get("MOERUN_CACHE", "")
    if chosen == "off":
        return None
    return Path(chosen or Path.home() / ".cache" / "moerun") / kind


def open_temporary(path: Path) -> tuple[int, str]:
    """Makes the folder of `path` and a temporary file in it, to be renamed to `path`: descriptor and name.

    Raises OSError where the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path.parent)
    return tempfile.mkstemp(".tmp", path.stem, path.parent)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a small file so that it is there complete or not at all. Raises OSError."""
    descriptor, temporary = open_temporary(path)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load_json(path: Path, otherwise: str) -> Any | None:
    """What save_json wrote, or None if it is not there or damaged; a warning says what is done then."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        logger.warning("%s: cannot be read, %s: %s", path, otherwise, str(error))
        return None
    line, _, checksum = content.rstrip(b"\n").partition(b"\n")
    if _sum(line) != checksum:
        logger.warning("%s: damaged, %s", path, otherwise)
        return None
    return json.loads(line)


def save_json(path: Path, value: Any) -> None:
    """Writes a line of JSON and the SHA-256 of it. Raises OSError."""
    line = json.dumps(value).encode()
    write_whole(path, line + b"\n" + _sum(line) + b"\n")


def _sum(line: bytes) -> bytes:
    return hashlib.sha256(line).hexdigest().encode()


def _remove_abandoned(folder: Path) -> None:
    for file in folder.glob("*.tmp"):
        try:
            if time.time() - file.stat().st_mtime > _ABANDONED_SECONDS:
                file.unlink()
        except OSError as error:  # another process was faster
            logger.debug("%s: %s", file, error)
