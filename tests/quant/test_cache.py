"""The cache on disk: hits, every kind of damage, two writers, and folders that cannot be written."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cache_writer import FORMAT, LAYOUT, SPEC, Writer, fetch, write_in_child

from blob_oracle import Layout
from moerun import Checkpoint, Engine
from moerun.quant import cache_folder, cache_size, load_quantised
from moerun.quant.cache import cached_blobs
from quantised import bytes_of
from random_checkpoints import save_random_checkpoint


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test."""
    monkeypatch.setenv("MOERUN_CACHE", str(tmp_path / "cache"))
    folder = cache_folder()
    assert folder is not None
    return folder


def entry(cache: Path) -> Path:
    (file,) = cache.glob("*.experts")
    return file


def test_the_second_time_nothing_is_written() -> None:
    writer = Writer()
    for _ in range(3):
        blobs = fetch(writer)
        assert blobs is not None
        assert (bytes_of(blobs, LAYOUT) == writer.content).all()
        assert (blobs.addresses % 256 == 0).all()
    assert writer.calls == 1


def test_another_key_is_another_entry(cache: Path) -> None:
    writer = Writer()
    fetch(writer, "one")
    fetch(writer, "two")
    assert writer.calls == 2
    assert len(list(cache.glob("*.experts"))) == 2


def test_blobs_outlive_their_file(cache: Path) -> None:
    writer = Writer()
    blobs = fetch(writer)
    assert blobs is not None
    entry(cache).unlink()
    assert (bytes_of(blobs, LAYOUT) == writer.content).all()


def flip(position: float) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[min(int(len(data) * position), len(data) - 1)] ^= 0x10
        file.write_bytes(data)

    return damage


def shorten(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def lengthen(file: Path) -> None:
    with open(file, "ab") as f:
        f.write(b"x")


def other_version(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b'"version": 1', b'"version": 0'))


def swap_blobs(file: Path) -> None:
    data = bytearray(file.read_bytes())
    first, second = slice(4096, 4096 + LAYOUT.bytes), slice(4096 + LAYOUT.bytes, 4096 + 2 * LAYOUT.bytes)
    data[first], data[second] = data[second], data[first]
    file.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        *(pytest.param(flip(at), id=f"flip {at}") for at in (0.0, 0.001, 0.3, 0.5, 0.9, 0.9999, 1.0)),
        shorten,
        lengthen,
        other_version,
        swap_blobs,
        pytest.param(lambda file: file.write_bytes(b""), id="empty"),
    ],
)
def test_damage_is_found_reported_and_repaired(
    damage: Callable[[Path], None], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = Writer()
    fetch(writer)
    damage(entry(cache))
    with caplog.at_level(logging.WARNING):
        blobs = fetch(writer)
    assert "damaged, quantising again" in caplog.text
    assert blobs is not None
    assert (bytes_of(blobs, LAYOUT) == writer.content).all()
    assert writer.calls == 2
    caplog.clear()
    fetch(writer)
    assert writer.calls == 2
    assert caplog.text == ""


def test_damage_with_the_old_time_of_change(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = Writer()
    fetch(writer)
    file = entry(cache)
    before = file.stat()
    flip(0.5)(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    fetch(writer)
    assert writer.calls == 2


def test_a_copied_cache_is_checked_and_used(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    writer = Writer()
    fetch(writer)
    moved = tmp_path / "elsewhere" / "experts"
    moved.mkdir(parents=True)
    (moved / entry(cache).name).write_bytes(entry(cache).read_bytes())
    monkeypatch.setenv("MOERUN_CACHE", str(tmp_path / "elsewhere"))
    assert fetch(writer) is not None
    assert writer.calls == 1


def test_an_interrupted_write_leaves_nothing(cache: Path) -> None:
    def interrupted(addresses: np.ndarray) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_blobs("key", SPEC, FORMAT, interrupted)
    assert list(cache.iterdir()) == []


def test_what_a_killed_process_left_is_removed_after_a_day(cache: Path) -> None:
    cache.mkdir(parents=True)
    old, new = cache / "old.tmp", cache / "new.tmp"
    for file in (old, new):
        file.write_bytes(b"x")
    os.utime(old, (0, 0))
    fetch(Writer())
    assert not old.exists()
    assert new.exists()


def test_a_folder_that_cannot_be_written(
    cache: Path, drop_privileges: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o555)
    cache.parent.parent.chmod(0o755)
    drop_privileges()
    writer = Writer()
    with caplog.at_level(logging.WARNING):
        assert fetch(writer) is None
    assert "cannot keep quantised experts here" in caplog.text
    assert writer.calls == 0


def test_a_disk_without_room(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with caplog.at_level(logging.WARNING):
        assert fetch(Writer()) is None
    assert "No space left" in caplog.text
    assert list(cache.iterdir()) == []


def test_processes_that_write_the_same_entry(cache: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    children = [context.Process(target=write_in_child, args=(barrier, results)) for _ in range(3)]
    for child in children:
        child.start()
    assert [results.get(timeout=120) for _ in children] == [True] * 3
    for child in children:
        child.join()
    writer = Writer()
    fetch(writer)
    assert writer.calls == 0
    assert list(cache.glob("*.tmp")) == []


def test_off_and_size(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_size() == 0
    fetch(Writer())
    assert cache_size() >= SPEC.num_experts * LAYOUT.bytes
    monkeypatch.setenv("MOERUN_CACHE", "off")
    assert cache_size() == 0
    writer = Writer()
    assert fetch(writer) is None
    assert writer.calls == 0


# Layers of a checkpoint.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """qwen3_moe: 2 layers, 6 experts, hidden 64, intermediate 48, fp32."""
    save_random_checkpoint("qwen3_moe", tmp_path / "model")
    return tmp_path / "model"


def load(folder: Path) -> tuple[np.ndarray, int]:
    """Layer 1 in FORMAT, uint8 [E, bytes]; and how many experts were reported as ready."""
    ready: list[int] = []
    with Checkpoint(folder) as checkpoint:
        spec = checkpoint.spec(1)
        layout = Layout(FORMAT, spec.hidden_size, spec.intermediate_size, spec.bias)
        return bytes_of(load_quantised(checkpoint, 1, FORMAT, on_progress=ready.append), layout), sum(ready)


def test_a_layer_comes_from_the_cache_the_second_time(folder: Path, cache: Path) -> None:
    first, ready = load(folder)
    assert ready == 6
    written = entry(cache).stat().st_ino
    second, ready = load(folder)
    assert ready == 6
    assert (first == second).all()
    assert entry(cache).stat().st_ino == written


@pytest.mark.parametrize("keep_times", [False, True])
def test_a_changed_checkpoint_is_quantised_again(folder: Path, keep_times: bool) -> None:
    before, _ = load(folder)
    file = folder / "model.safetensors"
    times = file.stat()
    save_random_checkpoint("qwen3_moe", folder, seed=1)
    if keep_times:
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    after, _ = load(folder)
    assert (before != after).any()


def test_layers_have_their_own_entries(folder: Path, cache: Path) -> None:
    with Checkpoint(folder) as checkpoint, Engine(cpu_threads=1) as engine:
        for layer in checkpoint.moe_layers:
            engine.add_layer_from(checkpoint, layer, quant=FORMAT)
    assert len(list(cache.glob("*.experts"))) == 2


def test_without_a_cache_layers_are_quantised_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached, _ = load(folder)
    monkeypatch.setenv("MOERUN_CACHE", "off")
    fresh, ready = load(folder)
    assert ready == 6
    assert (fresh == cached).all()
