"""Memory as this process may use it: the machine's, or what a control group leaves of it."""

import mmap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moerun import machine

GIB = 1 << 30


def make_root(tmp_path, **files):
    """A root folder with 64 GiB of memory, 48 of them available, and the given control-group files."""
    written = {
        "proc/meminfo": f"MemTotal: {64 << 20} kB\nMemFree: 1 kB\nMemAvailable: {48 << 20} kB\n",
        **{f"sys/fs/cgroup/{name}": content for name, content in files.items()},
    }
    for name, content in written.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path


def test_without_a_control_group_the_machine_counts(tmp_path):
    assert machine.memory(make_root(tmp_path)) == machine.Memory(64 * GIB, 48 * GIB)


@pytest.mark.parametrize("limit", ["max\n", f"{1 << 63}\n"])
def test_a_control_group_without_a_limit_changes_nothing(tmp_path, limit):
    root = make_root(tmp_path, **{"memory.max": limit, "memory.current": "5\n"})
    assert machine.memory(root) == machine.Memory(64 * GIB, 48 * GIB)


@pytest.mark.parametrize(
    ("limit", "used"),
    [
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ],
)
def test_a_control_group_limits_both_and_its_file_cache_can_be_dropped(tmp_path, limit, used):
    stat = limit.replace("max", "stat").replace("limit_in_bytes", "stat")
    files = {limit: f"{8 * GIB}\n", used: f"{3 * GIB}\n", stat: f"anon 7\ninactive_file {1 * GIB}\n"}
    assert machine.memory(make_root(tmp_path, **files)) == machine.Memory(8 * GIB, 6 * GIB)


def test_a_generous_control_group_does_not_add_memory(tmp_path):
    root = make_root(tmp_path, **{"memory.max": f"{60 * GIB}\n", "memory.current": f"{1 * GIB}\n"})
    assert machine.memory(root) == machine.Memory(60 * GIB, 48 * GIB)


def test_an_exhausted_control_group_has_nothing_left(tmp_path):
    root = make_root(tmp_path, **{"memory.max": f"{2 * GIB}\n", "memory.current": f"{3 * GIB}\n"})
    assert machine.memory(root).available_bytes == 0


def test_this_machine_has_memory():
    memory = machine.memory()
    assert 0 < memory.available_bytes <= memory.total_bytes


def test_peak_memory_counts_what_was_touched():
    before = machine.process_memory().peak_bytes
    size = 2 * before
    with mmap.mmap(-1, size) as block:
        for page in range(0, size, mmap.PAGESIZE):
            block[page] = 1
    assert machine.process_memory().peak_bytes >= size


@given(l3=st.integers(0, 2 * GIB), available=st.integers(0, 1 << 42), threads=st.integers(1, 256))
def test_the_read_buffer_leaves_memory_and_has_a_share_for_each_thread(l3, available, threads):
    size = machine.read_buffer_bytes(l3, available, threads)
    assert size >= threads * machine.MIB
    assert size <= max(available // 4, threads * machine.MIB)
    if available >= 16 * GIB + 16 * l3:
        assert size >= 4 * l3
