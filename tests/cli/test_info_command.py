"""``moerun info``: what it says of checkpoints, whether they fit, and what is wrong with broken ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moerun import Checkpoint, machine
from moerun.cli import info, main
from random_checkpoints import FAMILIES, save_random_checkpoint

DEMO = Path(__file__).parents[2] / "examples" / "pycode-moe"
GIB = 1 << 30
NO_GPU = {"devices": [], "reason": "no CUDA driver: none"}


def test_text_of_the_demo_checkpoint(capsys, demo):
    assert main(["info", str(demo)]) == 0
    out = capsys.readouterr().out
    for fact in (
        "qwen3_moe",
        "32 per layer, 4 of them per token",
        "bf16, 96 KiB each",
        "in 1 file",
        "18 MiB",
    ):
        assert fact in out
    assert "\nfits: " in out or "\ndoes not fit: " in out


def test_json_of_the_demo_checkpoint(capsys, demo):
    assert main(["info", str(demo), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["family"] == "qwen3_moe"
    assert (report["layers"], report["moe_layers"], report["files"]) == (6, 6, 1)
    assert (report["experts_per_layer"], report["top_k"]) == (32, 4)
    assert report["expert_bytes"] == 3 * 256 * 64 * 2
    assert report["all_experts_bytes"] == 6 * 32 * report["expert_bytes"]
    assert report["expert_bytes_per_token"] == 6 * 4 * report["expert_bytes"]
    assert report["total_bytes"] == report["all_experts_bytes"] + report["other_weights_bytes"]
    assert report["total_bytes"] <= (demo / "model.safetensors").stat().st_size


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_in_several_files(tmp_path, capsys, family):
    model = save_random_checkpoint(family, tmp_path, max_shard_size="100KB")
    assert main(["info", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["family"] == family
    assert report["files"] == len(list(tmp_path.glob("*.safetensors"))) > 1
    assert report["expert_format"] == "fp32"
    in_torch = sum(
        p.numel() * 4 for name, p in model.named_parameters() if ".experts." in name and p.dim() == 3
    )
    assert report["all_experts_bytes"] == in_torch
    assert main(["info", str(tmp_path)]) == 0
    dense = report["layers"] - report["moe_layers"]
    assert ("of them with experts" in capsys.readouterr().out) == (dense > 0)


@given(available=st.integers(0, 1 << 26), total=st.integers(1 << 26, 1 << 27))
def test_what_fits_is_said_and_consistent(available, total):
    checkpoint = Checkpoint(DEMO)
    report = info.describe(checkpoint, machine.Memory(total, available), NO_GPU)
    said = info.verdict(report)
    assert said.startswith("fits: " if report["fits"] else "does not fit: ")
    assert report["fits"] == (report["memory_needed_bytes"] <= available)
    assert 0 <= report["moe_layers_that_fit"] <= 6
    if report["fits"]:
        assert report["moe_layers_that_fit"] == 6


def test_what_would_help():
    report = {
        "fits": False,
        "memory_needed_bytes": 40 * GIB,
        "memory_available_bytes": 30 * GIB,
        "memory_total_bytes": 64 * GIB,
        "moe_layers_that_fit": 30,
        "moe_layers": 48,
    }
    assert "other programs free 10 GiB" in info.verdict(report)
    assert "30 of 48 layers" in info.verdict(report)
    assert "a machine with 8 GiB more" in info.verdict({**report, "memory_total_bytes": 32 * GIB})


def test_not_a_checkpoint(tmp_path, capsys):
    assert main(["info", str(tmp_path)]) == 1
    assert "config.json" in capsys.readouterr().err


def test_a_file_instead_of_its_folder(demo, capsys):
    assert main(["info", str(demo / "model.safetensors")]) == 1
    assert "model.safetensors" in capsys.readouterr().err


def test_a_truncated_file(demo_copy, capsys):
    with (demo_copy / "model.safetensors").open("r+b") as file:
        file.truncate(100_000)
    assert main(["info", str(demo_copy)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("moerun: error: ")
    assert "model.safetensors" in message
    assert message.count("\n") == 1


def test_broken_json(demo_copy, capsys):
    (demo_copy / "config.json").write_text("{")
    assert main(["info", str(demo_copy)]) == 1
    assert "config.json" in capsys.readouterr().err


def test_a_family_that_is_not_known(demo_copy, capsys):
    (demo_copy / "config.json").write_text('{"model_type": "llama"}')
    assert main(["info", str(demo_copy)]) == 1
    message = capsys.readouterr().err
    assert "llama" in message
    assert "mixtral" in message


def test_a_reader_that_goes_away(demo):
    command = [sys.executable, "-m", "moerun", "info", str(demo)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    message = process.stderr.read()
    assert process.wait(timeout=60) == 141
    assert message == ""
