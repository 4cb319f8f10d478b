"""The cache of quantised layers on disk: one file per layer and format, mapped read-only when it is there.

A file holds a header of one page (magic and a line of JSON that says everything about the blobs), the blobs
as they lie in memory, and a trailer: the checksum of each blob, and one of header and trailer. It is written
under another name, brought to disk and then renamed, so that a file under its own name is complete; two
processes that write the same one write the same bytes, and the last rename counts.

Checking every byte of a layer takes about as long as reading it, too long for a start in milliseconds. So the
state of a file that was found good (size, times, inode) is noted beside it, and the checksums are computed
again only when that differs: after any write, copy or restore. A file that fails the check is built anew.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moerun import _core, cache_files
from moerun.errors import CheckpointError
from moerun.layer_spec import ExpertBlobs, LayerSpec
from moerun.quant.blobs import blobs_in, layout_of

logger = logging.getLogger(__name__)

# Of the file's layout and of what the quantiser computes: raise it when either changes.
VERSION = 1
_MAGIC = b"MOERUNQ\n"
_HEADER_BYTES = 4096

Write = Callable[[np.ndarray], None]  # fills the blobs at these addresses, uint64 [E]


def cache_folder() -> Path | None:
    """Where quantised layers are kept; None if the cache is off."""
    return cache_files.cache_folder("experts")


def cache_size() -> int:
    """Bytes that quantised layers take on disk."""
    folder = cache_folder()
    if folder is None or not folder.is_dir():
        return 0
    with os.scandir(folder) as entries:
        return sum(entry.stat().st_size for entry in entries if entry.is_file())


def cached_blobs(key: str, spec: LayerSpec, weight_format: str, write: Write) -> ExpertBlobs | None:
    """Returns a layer's blobs from the cache, after writing them there if they are not.

    Parameters
    ----------
    key
        Names the content that `write` quantises (see checkpoint.fingerprint).
    write
        Called at most once. What it raises is raised here, and nothing is left behind.

    Returns
    -------
    None if the cache is off, cannot be written, or does not give back what was written; a warning says why.
    """
    folder = cache_folder()
    if folder is None:
        return None
    entry = _Entry(folder / f"{key}-{weight_format}.experts", key, spec, weight_format)
    found = entry.load()
    if found is not None:
        return found
    try:
        temporary = entry.create()
    except OSError as error:
        logger.warning(
            "%s: cannot keep quantised experts here, they are quantised on each start: %s", folder, error
        )
        return None
    try:
        entry.fill(temporary, write)
        os.replace(temporary, entry.path)
    except BaseException:
        os.unlink(temporary)
        raise
    entry.note_verified()
    return entry.load()


class _Entry:
    """One file of the cache, there or not."""

    def __init__(self, path: Path, key: str, spec: LayerSpec, weight_format: str) -> None:
        self.path = path
        self.spec = spec
        self.weight_format = weight_format
        self.blob_bytes = layout_of(spec, weight_format).bytes
        self.blobs_end = _HEADER_BYTES + spec.num_experts * self.blob_bytes
        self.file_bytes = self.blobs_end + 8 * (spec.num_experts + 1)
        description = {
            "version": VERSION,
            "key": key,
            "format": weight_format,
            "experts": spec.num_experts,
            "hidden": spec.hidden_size,
            "intermediate": spec.intermediate_size,
            "bias": spec.bias,
            "blob_bytes": self.blob_bytes,
        }
        self.header = (_MAGIC + json.dumps(description).encode() + b"\n").ljust(_HEADER_BYTES, b"\0")

    @property
    def stamp(self) -> Path:
        """Holds the file's state when it was last found good."""
        return self.path.with_suffix(".verified")

    def load(self) -> ExpertBlobs | None:
        """Maps the file if it is there and good."""
        try:
            os.stat(self.path)
        except OSError:
            return None
        try:
            # Any: the stub cannot say that it is a buffer
            mapped: Any = _core.MappedFile(str(self.path), self.file_bytes)
        except CheckpointError as error:
            logger.warning("%s: damaged, quantising again: %s", self.path, error)
            return None
        blobs = blobs_in(self.spec, self.weight_format, mapped, _HEADER_BYTES)
        if not self._is_verified():
            if not self._is_good(memoryview(mapped), blobs):
                logger.warning("%s: damaged, quantising again", self.path)
                return None
            self.note_verified()
        return blobs

    def create(self) -> str:
        """Makes a temporary file with all its space on disk; raises OSError where that cannot be."""
        descriptor, temporary = cache_files.open_temporary(self.path)
        try:
            # Without this, a full disk would end the process when a mapped page finds no room.
            os.posix_fallocate(descriptor, 0, self.file_bytes)
        except OSError:
            os.unlink(temporary)
            raise
        finally:
            os.close(descriptor)
        return temporary

    def fill(self, temporary: str, write: Write) -> None:
        """Writes everything and waits until it is on disk."""
        with open(temporary, "r+b") as file:
            pages = mmap.mmap(file.fileno(), self.file_bytes)
            pages[:_HEADER_BYTES] = self.header
            blobs = blobs_in(self.spec, self.weight_format, pages, _HEADER_BYTES)
            write(blobs.addresses)
            pages[self.blobs_end :] = self._trailer(blobs)
            pages.flush()
            os.fsync(file.fileno())

    def note_verified(self) -> None:
        """Notes the file's state. A folder that cannot be written costs a check at each start."""
        try:
            self.stamp.write_text(self._state())
        except OSError as error:
            logger.debug("%s: %s", self.stamp, error)

    def _state(self) -> str:
        status = os.stat(self.path)
        return f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"

    def _is_verified(self) -> bool:
        try:
            return self.stamp.read_text() == self._state()
        except (OSError, ValueError):
            return False

    def _is_good(self, content: memoryview, blobs: ExpertBlobs) -> bool:
        return content[:_HEADER_BYTES] == self.header and content[self.blobs_end :] == self._trailer(blobs)

    def _trailer(self, blobs: ExpertBlobs) -> bytes:
        sums = _core.checksums(blobs.addresses, self.blob_bytes)
        head = np.frombuffer(self.header + sums.tobytes(), np.uint8)
        return sums.tobytes() + _core.checksums(np.array([head.ctypes.data], np.uint64), len(head)).tobytes()
