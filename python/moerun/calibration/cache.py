"""The cache of timed points on disk: one small file per machine, shape and format.

A file is a line of JSON (what was timed, and the points) and the SHA-256 of it. Its name is a hash of what
was timed: another processor, GPU, number of threads, version or shape is another file.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from moerun import cache_files
from moerun.calibration.points import Points

logger = logging.getLogger(__name__)

_VERSION = 1  # of the file's layout, and of what is timed (src/scheduler/timing.cc)


def load(subject: dict[str, Any]) -> Points | None:
    """What was timed before, or None if it is not there, or damaged (with a warning)."""
    path = _path(subject)
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        logger.warning("%s: cannot be read, timing again: %s", path, str(error))
        return None
    line, _, checksum = content.rstrip(b"\n").partition(b"\n")
    if _sum(line) != checksum:
        logger.warning("%s: damaged, timing again", path)
        return None
    return Points.from_dict(json.loads(line)["points"])


def save(subject: dict[str, Any], points: Points) -> None:
    """Keeps the points. Where that cannot be, every engine times anew; a warning says so."""
    path = _path(subject)
    if path is None:
        return
    line = json.dumps({**subject, "points": points.as_dict()}).encode()
    try:
        cache_files.write_whole(path, line + b"\n" + _sum(line) + b"\n")
    except OSError as error:
        logger.warning(
            "%s: cannot keep a calibration here, each start repeats it: %s", path.parent, str(error)
        )


def _path(subject: dict[str, Any]) -> Path | None:
    folder = cache_files.cache_folder("calibration")
    name = json.dumps([_VERSION, subject], sort_keys=True).encode()
    return None if folder is None else folder / f"{hashlib.sha256(name).hexdigest()[:40]}.json"


def _sum(line: bytes) -> bytes:
    return hashlib.sha256(line).hexdigest().encode()
