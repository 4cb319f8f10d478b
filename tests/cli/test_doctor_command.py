"""``moerun doctor``: complete, in units, and with advice that fits what was found. No figure is judged."""

import copy
import json

import pytest

from moerun import _core
from moerun.cli import doctor, main

QUIET = {
    "moerun": "1.0",
    "cpu": {
        "model": "A processor",
        "usable_cores": 2,
        "nodes": [{"id": 0, "cpus": [0, 1]}],
        "l1d_bytes": 32 << 10,
        "l2_bytes": 1 << 20,
        "l3_bytes": 0,
        "instruction_sets": ["avx2"],
    },
    "kernels": {"chosen": "avx2", "reason": "because", "available": ["avx2", "ref"]},
    "memory": {"total_bytes": 64 << 30, "available_bytes": 48 << 30},
    "openmp": "/lib/libgomp.so.1",
    "limits": [
        {
            "threads": threads,
            "buffer_bytes": 1 << 29,
            "read_gb_per_s": {"median": 20.0, "best": 21.0, "spread_percent": 2.0, "repeats": 9},
            "dot_gflop_per_s": {"fp32": {"median": 90.0, "best": 99.0, "spread_percent": 1.0, "repeats": 9}},
        }
        for threads in (1, 2)
    ],
    "packages": {"torch": "2.9.0", "transformers": "5.10.0", "triton": None},
    "gpu": {"library": "libcuda.so.1", "driver_version": 0, "devices": [], "reason": "no CUDA driver: none"},
    "advice": [],
}
GPU = {
    "library": "libcuda.so.1",
    "driver_version": 12040,
    "devices": [{"name": "A card", "compute_capability": "8.9", "memory_bytes": 16 << 30}],
    "reason": "",
}


def changed(**parts):
    return {**copy.deepcopy(QUIET), **parts}


def test_json(capsys):
    assert main(["doctor", "--quick", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    cores = report["cpu"]["usable_cores"]
    assert [limits["threads"] for limits in report["limits"]] == sorted({1, cores})
    for limits in report["limits"]:
        assert limits["read_gb_per_s"]["median"] > 0
        assert limits["dot_gflop_per_s"]["fp32"]["median"] > 0
    assert report["kernels"]["chosen"] in report["kernels"]["available"]
    assert report["memory"]["available_bytes"] <= report["memory"]["total_bytes"]
    assert bool(report["gpu"]["devices"]) != bool(report["gpu"]["reason"])
    assert report["packages"]["torch"]


def test_text(capsys):
    assert main(["doctor", "--quick"]) == 0
    out = capsys.readouterr().out
    for part in (
        "Processor",
        "kernels",
        "Memory",
        "OpenMP",
        "memory read",
        "GB/s",
        "dot fp32",
        "torch",
        "GPU",
    ):
        assert part in out
    assert _core.choose_isa() in out


def test_forced_kernels_are_named_with_advice(capsys, monkeypatch):
    monkeypatch.setenv("MOERUN_ISA", "ref")
    assert main(["doctor", "--quick", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["kernels"]["chosen"] == "ref"
    assert "MOERUN_ISA" in report["kernels"]["reason"]
    if report["kernels"]["available"] != ["ref"]:
        assert any("unset it" in line for line in report["advice"])


def test_kernels_that_this_machine_lacks_are_an_error(capsys, monkeypatch):
    monkeypatch.setenv("MOERUN_ISA", "sse9")
    assert main(["doctor", "--quick"]) == 1
    assert "sse9" in capsys.readouterr().err


def test_nothing_to_put_right():
    assert doctor.advice(QUIET) == []
    assert "Advice" not in doctor.render(QUIET)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"packages": {"transformers": None, "triton": None}}, "pip install 'moerun[hf]'"),
        ({"packages": {"transformers": "4.57.1", "triton": None}}, "transformers 4.57.1 is too old"),
        ({"packages": {"transformers": "5.6.2", "triton": None}}, "needs 5.7"),
        ({"gpu": GPU}, "pip install 'moerun[gpu]'"),
        ({"kernels": {"chosen": "ref", "reason": "", "available": ["avx2", "ref"]}}, "MOERUN_ISA"),
        ({"kernels": {"chosen": "ref", "reason": "", "available": ["ref"]}}, "no AVX2"),
        ({"openmp": "none found"}, "OpenMP"),
    ],
)
def test_advice(found, expected):
    report = changed(**found)
    (line,) = doctor.advice(report)
    assert expected in line
    assert line in doctor.render({**report, "advice": [line]})


def test_a_busy_machine_is_said_so():
    report = changed()
    report["limits"][1]["read_gb_per_s"]["spread_percent"] = 40.0
    (line,) = doctor.advice(report)
    assert "scattered by 40 %" in line


def test_threads_that_hinder_one_another_are_said_so():
    report = changed()
    report["limits"][1]["dot_gflop_per_s"]["fp32"]["median"] = 60.0
    (line,) = doctor.advice(report)
    assert "less than one alone" in line


@pytest.mark.parametrize("version", ["5.7.0", "5.7", "5.23.0", "5.7.0.dev0", "6.0rc1"])
def test_transformers_that_are_new_enough(version):
    assert doctor.advice(changed(packages={"transformers": version, "triton": None})) == []


def test_render_of_nodes():
    report = changed()
    assert "2 usable, 1 NUMA node\n" in doctor.render(report)
    report["cpu"]["nodes"] = [{"id": 0, "cpus": [0, 1, 2, 8]}, {"id": 3, "cpus": [5]}]
    assert "2 NUMA nodes (node 0: 0-2,8; node 3: 5)" in doctor.render(report)


def test_render_of_a_gpu():
    out = doctor.render(changed(gpu=GPU))
    assert "driver for CUDA 12.4" in out
    assert "A card, compute capability 8.9, 16 GiB" in out


def test_render_says_why_there_is_no_gpu():
    assert "none: no CUDA driver: none" in doctor.render(QUIET)
