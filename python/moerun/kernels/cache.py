"""The cache of compiled kernels on disk: one small file per kernel.

A file is a line of JSON (the kernel's metadata), the cubin, and the SHA-256 of both. Its name is a hash of
all that the cubin depends on: Triton's version, the architecture, the sources of this package, the kernel
with its constants and tile. A new version of any of these compiles anew; old files are merely unused.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from moerun import cache_files
from moerun.kernels.compile import Binary, Job
from moerun.kernels.layout import Tile

logger = logging.getLogger(__name__)

_VERSION = 1  # of the file's layout
_SUM_BYTES = hashlib.sha256().digest_size


def key_of(job: Job, triton_version: str) -> str:
    """The name under which a job's kernel is kept."""
    text = f"{_VERSION} {triton_version} {_source_hash()} {job!r}"
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def load(key: str) -> Binary | None:
    """The kernel, or None if it is not there, or damaged (with a warning)."""
    folder = cache_files.cache_folder("kernels")
    if folder is None:
        return None
    path = folder / key
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        logger.warning("%s: cannot be read, compiling again: %s", path, error)
        return None
    body, checksum = content[:-_SUM_BYTES], content[-_SUM_BYTES:]
    if hashlib.sha256(body).digest() != checksum:
        logger.warning("%s: damaged, compiling again", path)
        return None
    head, _, cubin = body.partition(b"\n")
    described = json.loads(head)
    return Binary(
        cubin, Tile(**described["tile"]), described["shared_bytes"], described["scratch_parameters"]
    )


def save(binaries: Mapping[str, Binary]) -> None:
    """Keeps kernels by key. Where that cannot be, they are compiled at each start; a warning says so."""
    folder = cache_files.cache_folder("kernels")
    if folder is None:
        return
    try:
        for key, binary in binaries.items():
            cache_files.write_whole(folder / key, _content(binary))
    except OSError as error:
        logger.warning("%s: cannot keep GPU kernels here, they are compiled on each start: %s", folder, error)


def _content(binary: Binary) -> bytes:
    described = {
        "tile": asdict(binary.tile),
        "shared_bytes": binary.shared_bytes,
        "scratch_parameters": binary.scratch_parameters,
    }
    body = json.dumps(described).encode() + b"\n" + binary.cubin
    return body + hashlib.sha256(body).digest()


def _source_hash() -> str:
    """Of this package: small files, and any may change what is compiled."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()
