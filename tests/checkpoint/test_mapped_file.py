"""The core's mapping of one file: its bytes, its lifetime, and what it refuses to map."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from moerun import _core
from moerun.errors import CheckpointError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of 10,000 bytes: more than two pages, and not a whole number of them."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(10_000))
    return path


def assert_refused(path: Path, expected_bytes: int, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        _core.MappedFile(str(path), expected_bytes)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_address_and_buffer_give_the_bytes_of_the_file(file: Path) -> None:
    mapped = _core.MappedFile(str(file), 10_000)
    assert (mapped.path, mapped.size) == (str(file), 10_000)
    assert bytes(memoryview(mapped)) == file.read_bytes()
    assert ctypes.string_at(mapped.address, mapped.size) == file.read_bytes()


def test_the_buffer_is_read_only_and_keeps_the_mapping_alive(file: Path) -> None:
    view = memoryview(_core.MappedFile(str(file), 10_000))
    gc.collect()
    assert view.readonly
    assert bytes(view[-4:]) == file.read_bytes()[-4:]
    with pytest.raises(TypeError):
        view[0] = 1


def test_a_mapping_outlives_the_files_name(file: Path) -> None:
    content = file.read_bytes()
    mapped = _core.MappedFile(str(file), 10_000)
    file.unlink()
    assert bytes(memoryview(mapped)) == content


def test_mappings_are_given_back(file: Path) -> None:
    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count(str(file))

    mapped = [_core.MappedFile(str(file), 10_000) for _ in range(3)]
    assert mappings() == 3
    mapped.clear()
    gc.collect()
    assert mappings() == 0


def test_no_descriptor_stays_open(file: Path) -> None:
    mapped = _core.MappedFile(str(file), 10_000)
    links = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert mapped.size == 10_000
    assert str(file) not in links


@pytest.mark.parametrize("size", [9_999, 1, 10_001, 0])
def test_a_file_that_was_changed_after_its_header_was_read(file: Path, size: int) -> None:
    os.truncate(file, size)
    assert_refused(file, 10_000, "expected 10000 bytes", f"found {size}", "changed")


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert_refused(tmp_path / "empty", 0, "expected a file with content", "found an empty one")


def test_a_missing_file(tmp_path: Path) -> None:
    assert_refused(tmp_path / "none", 1, "No such file or directory")


def test_a_directory(tmp_path: Path) -> None:
    assert_refused(tmp_path, tmp_path.stat().st_size, "expected a regular file", "found a directory")


def test_a_device() -> None:
    assert_refused(Path("/dev/null"), 0, "expected a regular file")


def test_a_named_pipe_fails_instead_of_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert_refused(tmp_path / "pipe", 1, "expected a regular file")


def test_a_file_without_permission(file: Path, drop_privileges: Callable[[], None]) -> None:
    file.chmod(0)
    drop_privileges()
    assert_refused(file, 10_000, "Permission denied")


def test_more_bytes_than_there_are_addresses(tmp_path: Path) -> None:
    size = (
        2**43
    )  # of a sparse file; 128 TiB of addresses are shared by all mappings, most file systems stop before
    path = tmp_path / "sparse"
    path.touch()
    try:
        os.truncate(path, size)
    except OSError as error:
        pytest.skip(f"this file system has no sparse file of {size} bytes: {error}")
    mapped = [_core.MappedFile(str(path), size) for _ in range(8)]
    with pytest.raises(CheckpointError, match="cannot map: Cannot allocate memory"):
        mapped += [_core.MappedFile(str(path), size) for _ in range(16)]


@pytest.mark.parametrize(("offset", "count"), [(0, 0), (0, 10_000), (5_000, 1), (4_096, 4_096), (10_000, 0)])
def test_prefetching_a_part_of_the_file(file: Path, offset: int, count: int) -> None:
    mapped = _core.MappedFile(str(file), 10_000)
    mapped.prefetch(offset, count)
    assert bytes(memoryview(mapped)) == file.read_bytes()


@pytest.mark.parametrize(
    ("offset", "count"), [(0, 10_001), (10_001, 0), (9_999, 2), (1, 2**64 - 1), (2**64 - 1, 2)]
)
def test_prefetching_beyond_the_file(file: Path, offset: int, count: int) -> None:
    mapped = _core.MappedFile(str(file), 10_000)
    with pytest.raises(ValueError, match="has 10000"):
        mapped.prefetch(offset, count)
