"""The cache of timed points on disk: one small file per machine, shape and format.

Its name is a hash of what was timed: another processor, GPU, number of threads, version or shape is another
file.
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

_VERSION = 2  # of the file's layout, and of what is timed (src/scheduler/timing.cc)


def load(subject: dict[str, Any]) -> Points | None:
    """What was timed before, or None if it is not there, or damaged (with a warning)."""
    path = _path(subject)
    found = None if path is None else cache_files.load_json(path, "timing again")
    return None if found is None else Points.from_dict(found["points"])


def save(subject: dict[str, Any], points: Points) -> None:
    """Keeps the points. Where that cannot be, every engine times anew; a warning says so."""
    path = _path(subject)
    if path is None:
        return
    try:
        cache_files.save_json(path, {**subject, "points": points.as_dict()})
    except OSError as error:
        logger.warning(
            "%s: cannot keep a calibration here, each start repeats it: %s", path.parent, str(error)
        )


def _path(subject: dict[str, Any]) -> Path | None:
    folder = cache_files.cache_folder("calibration")
    name = json.dumps([_VERSION, subject], sort_keys=True).encode()
    return None if folder is None else folder / f"{hashlib.sha256(name).hexdigest()[:40]}.json"
