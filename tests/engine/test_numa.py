"""Several memories (NUMA nodes): found, made up by MOERUN_NUMA_NODES, and without effect on any result."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import moerun
from moerun import _core
from moerun.cli.doctor import cpu_list

CPUS = sorted(os.sched_getaffinity(0))
VARIABLE = "MOERUN_NUMA_NODES"
EXPERTS, HIDDEN, INTER, TOP_K, TOKENS = 5, 192, 320, 3, 37


@pytest.fixture
def two_nodes(monkeypatch) -> None:
    if len(CPUS) < 2:
        pytest.skip("a made-up topology of two nodes needs two processors")
    monkeypatch.setenv(VARIABLE, f"{CPUS[0]};{cpu_list(CPUS[1:])}")


def outputs(quant: str | None, threads: int) -> tuple[np.ndarray, dict]:
    generator = np.random.default_rng(1)
    tensors = {
        "gate_up": generator.standard_normal((EXPERTS, 2 * INTER, HIDDEN), np.float32) / 8,
        "down": generator.standard_normal((EXPERTS, HIDDEN, INTER), np.float32) / 8,
    }
    ids = np.stack([generator.permutation(EXPERTS)[:TOP_K] for _ in range(TOKENS)])
    x = generator.standard_normal((TOKENS, HIDDEN), np.float32)
    weights = generator.random((TOKENS, TOP_K), np.float32)
    with moerun.Engine(cpu_threads=threads) as engine:
        spec = moerun.LayerSpec(EXPERTS, HIDDEN, INTER, top_k=TOP_K, quant=quant)
        out = engine.add_layer(spec, tensors).forward(x, ids, weights)
        return np.asarray(out), engine.stats()["numa"]


@pytest.mark.parametrize("quant", [None, "int8", "int4_g32", "fp8_b128"])
@pytest.mark.parametrize("threads", [2, 3])
def test_nodes_change_no_bit(two_nodes, monkeypatch, quant, threads):
    split, numa = outputs(quant, threads)
    assert numa["nodes"] == 2
    assert numa["placed_bytes"] + numa["elsewhere_bytes"] > 0
    monkeypatch.setenv(VARIABLE, "off")
    whole, numa = outputs(quant, threads)
    assert numa == {"nodes": 1, "placed_bytes": 0, "elsewhere_bytes": 0}
    np.testing.assert_array_equal(split, whole)


def test_one_thread_has_one_node(two_nodes):
    assert outputs(None, 1)[1]["nodes"] == 1


def test_threads_get_their_processors_back(two_nodes):
    outputs(None, 2)
    assert sorted(os.sched_getaffinity(0)) == CPUS
    for task in Path("/proc/self/task").iterdir():
        assert sorted(os.sched_getaffinity(int(task.name))) == CPUS


def test_made_up_nodes_are_shown(two_nodes):
    assert [node["cpus"] for node in _core.cpu_info()["nodes"]] == [CPUS[:1], CPUS[1:]]


@pytest.mark.parametrize("text", ["x", "0-", "-1", "3-1", "0,0", "0;0", "0;;", "99999", ",", "0 1"])
def test_a_topology_that_makes_no_sense_is_an_error(monkeypatch, text):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ValueError, match=rf"{VARIABLE}.*give lists of usable processors"):
        moerun.Engine()


def test_a_processor_that_cannot_be_used_is_an_error(monkeypatch):
    monkeypatch.setenv(VARIABLE, f"{CPUS[0]};{CPUS[-1] + 1}")
    with pytest.raises(ValueError, match=f"processor {CPUS[-1] + 1} cannot be used"):
        moerun.Engine()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=64), st.sets(st.integers(0, 63), min_size=1))
def test_nodes_are_read_as_the_kernel_shows_them(tmp_path_factory, node_of_cpu, usable):
    folder = tmp_path_factory.mktemp("node")
    (folder / "possible").write_text("0-3\n")
    for node in range(4):
        (folder / f"node{node}").mkdir()
        cpus = [cpu for cpu, n in enumerate(node_of_cpu) if n == node]
        (folder / f"node{node}" / "cpulist").write_text(cpu_list(cpus) + "\n")
    expected = {}
    for cpu, node in enumerate(node_of_cpu):
        if cpu in usable:
            expected.setdefault(node, []).append(cpu)
    found = _core.read_nodes(str(folder), sorted(usable))
    assert {n["id"]: n["cpus"] for n in found} == (expected or {0: sorted(usable)})
    assert [n["id"] for n in found] == sorted(n["id"] for n in found)


def test_a_kernel_without_numa_is_one_node(tmp_path):
    assert _core.read_nodes(str(tmp_path / "none"), [1, 2]) == [{"id": 0, "cpus": [1, 2]}]
