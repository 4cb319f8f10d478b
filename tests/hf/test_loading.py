"""moerun.hf.from_pretrained: what it accepts, what it refuses, and who owns the engine."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import shutil
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import moerun
import moerun.hf
from moerun.hf.folder import checkpoint_folder

IDS = torch.randint(3, 128, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(random_checkpoint: Callable[..., Path]) -> Path:
    return random_checkpoint("qwen3_moe")


def edited(folder: Path, to: Path, **config: object) -> Path:
    """A copy of a checkpoint with other values in config.json."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    fields = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**fields, **config}))
    return to


def test_dtype_is_the_checkpoints_unless_given(folder: Path, random_checkpoint: Callable[..., Path]) -> None:
    def dtype_of(path: Path, **options: object) -> torch.dtype:
        return moerun.hf.from_pretrained(path, **options)(IDS).logits.dtype

    assert dtype_of(folder) == torch.float32
    assert dtype_of(folder, dtype="bf16") == torch.bfloat16
    assert dtype_of(folder, dtype="float16") == torch.float16
    assert dtype_of(folder, dtype=torch.bfloat16) == torch.bfloat16
    assert dtype_of(random_checkpoint("qwen3_moe", dtype="bf16")) == torch.bfloat16


def test_options_go_to_the_engine_or_to_transformers(folder: Path) -> None:
    model = moerun.hf.from_pretrained(folder, cpu_threads=1, attn_implementation="eager", use_cache=False)
    assert model.moerun_engine.config.cpu_threads == 1
    assert model.config._attn_implementation == "eager"
    assert model.config.use_cache is False


def test_routes_to_as_many_experts_as_the_config_says(folder: Path) -> None:
    """The config may be overridden when loading, and the engine follows its caller."""
    options = {"num_experts_per_tok": 3, "dtype": torch.float32}
    ours = moerun.hf.from_pretrained(folder, **options)
    eager = AutoModelForCausalLM.from_pretrained(folder, **options, experts_implementation="eager")
    torch.testing.assert_close(ours(IDS).logits, eager(IDS).logits, rtol=0, atol=1e-4)


def test_nothing_is_reported_as_unexpected_or_missing(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    moerun.hf.from_pretrained(folder)
    assert caplog.text == ""


# Ownership


def test_engine_lives_as_long_as_the_model(folder: Path) -> None:
    model = moerun.hf.from_pretrained(folder)
    engine = weakref.ref(model.moerun_engine)
    del model
    gc.collect()
    assert engine() is None


def test_engine_lives_as_long_as_a_part_of_the_model(folder: Path) -> None:
    model = moerun.hf.from_pretrained(folder)
    expected = model(IDS, output_hidden_states=True).hidden_states[-1]
    decoder = model.model
    del model
    gc.collect()
    assert torch.equal(decoder(IDS).last_hidden_state, expected)


def test_a_passed_engine_stays_the_callers(folder: Path) -> None:
    with moerun.Engine(cpu_threads=1) as engine:
        first = moerun.hf.from_pretrained(folder, engine=engine)
        second = moerun.hf.from_pretrained(folder, engine=engine)
        expected = first(IDS).logits
        del first
        gc.collect()
        assert second.moerun_engine is engine
        assert torch.equal(second(IDS).logits, expected)
    with pytest.raises(RuntimeError, match="closed"):
        second(IDS)


def test_copies_share_the_experts(folder: Path) -> None:
    model = moerun.hf.from_pretrained(folder)
    expected = model(IDS).logits
    twin = copy.deepcopy(model)
    assert twin.moerun_engine is model.moerun_engine
    del model
    gc.collect()
    # Not to the last bit: the twin's dense weights moved, so that torch computes them.
    torch.testing.assert_close(twin(IDS).logits, expected)


# What an ordinary model can do and this one cannot


def test_cannot_be_pickled(folder: Path) -> None:
    model = moerun.hf.from_pretrained(folder)
    with pytest.raises(TypeError, match=r"cannot be pickled.* load it where it is needed"):
        pickle.dumps(model)


def test_cannot_be_saved(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = moerun.hf.from_pretrained(folder)
    with pytest.raises(ValueError, match="not serializable"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_cannot_be_trained(folder: Path) -> None:
    model = moerun.hf.from_pretrained(folder).train()
    with pytest.raises(NotImplementedError, match="inference only"):
        model(IDS, labels=IDS).loss.backward()


def test_can_be_cast(random_checkpoint: Callable[..., Path]) -> None:
    """Casting rounds what torch holds, as it does in torch; bf16 experts are what they were."""
    folder = random_checkpoint("qwen3_moe", dtype="bf16")
    ours = moerun.hf.from_pretrained(folder, dtype=torch.float32)
    eager = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, experts_implementation="eager")
    for model in (ours, eager):
        assert model.to(torch.bfloat16)(IDS).logits.dtype == torch.bfloat16
        model.to(torch.float32)
    torch.testing.assert_close(ours(IDS).logits, eager(IDS).logits, rtol=0, atol=1e-4)


# Refused before anything is loaded


@pytest.mark.parametrize(
    "option", ["device_map", "quantization_config", "experts_implementation", "tp_plan", "subfolder"]
)
def test_refuses_options_that_cannot_work(folder: Path, option: str) -> None:
    with pytest.raises(ValueError, match=f"takes no {option}: "):
        moerun.hf.from_pretrained(folder, **{option: "auto"})


@pytest.mark.parametrize("dtype", ["fp8", "fp64", torch.float64, torch.int8, 16])
def test_refuses_other_dtypes(folder: Path, dtype: object) -> None:
    with pytest.raises(ValueError, match=r"dtype must be one of fp32, fp16, bf16 .* got "):
        moerun.hf.from_pretrained(folder, dtype=dtype)


def test_refuses_to_configure_a_passed_engine(folder: Path) -> None:
    with (
        moerun.Engine() as engine,
        pytest.raises(ValueError, match="cpu_threads would configure a new engine"),
    ):
        moerun.hf.from_pretrained(folder, engine=engine, cpu_threads=1)


def test_misspelt_options_are_named(folder: Path) -> None:
    with pytest.raises(TypeError, match="cpu_thread"):
        moerun.hf.from_pretrained(folder, cpu_thread=1)


def test_refuses_a_config_with_other_layers(folder: Path) -> None:
    with pytest.raises(moerun.CheckpointError, match=r"in the layers \[0\], but .* in \[0, 1\]"):
        moerun.hf.from_pretrained(folder, num_hidden_layers=1)


def test_unknown_family(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(moerun.CheckpointError, match=r"qwen3_moe.*'llama'"):
        moerun.hf.from_pretrained(edited(folder, tmp_path, model_type="llama"))


def test_quantised_checkpoint(folder: Path, tmp_path: Path) -> None:
    quantised = edited(folder, tmp_path, quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(moerun.CheckpointError, match=r"quantization_config.*bitsandbytes"):
        moerun.hf.from_pretrained(quantised)


def test_transformers_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"needs transformers: pip install 'moerun\[hf\]'"):
        moerun.hf.from_pretrained(folder)


@pytest.mark.parametrize("version", ["4.57.1", "5.6.2", "5.0.0.dev0"])
def test_transformers_too_old(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)
    with pytest.raises(ImportError, match=rf">= 5\.7, found {version}: pip install -U 'moerun\[hf\]'"):
        moerun.hf.from_pretrained(folder)


# Where the folder comes from


@pytest.mark.parametrize("missing", ["/no/such/folder", "./no/such/folder", "nowhere", ""])
def test_missing_folder(missing: str) -> None:
    with pytest.raises(moerun.CheckpointError, match=f"there is no folder {missing}"):
        moerun.hf.from_pretrained(missing)


def test_file_instead_of_folder(folder: Path) -> None:
    with pytest.raises(moerun.CheckpointError, match=r"config\.json is a file; give the folder"):
        moerun.hf.from_pretrained(folder / "config.json")


def test_repository_in_the_local_cache(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--owner--name"
    shutil.copytree(folder, repository / "snapshots" / "0123abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    found = checkpoint_folder("owner/name", cache_dir=tmp_path, local_files_only=True)
    assert sorted(f.name for f in Path(found).iterdir()) == sorted(f.name for f in folder.iterdir())


def test_repository_that_cannot_be_fetched(tmp_path: Path) -> None:
    with pytest.raises(
        moerun.CheckpointError, match="owner/name is neither in the Hugging Face cache"
    ) as raised:
        moerun.hf.from_pretrained("owner/name", cache_dir=tmp_path, local_files_only=True)
    assert isinstance(raised.value.__cause__, LocalEntryNotFoundError)
