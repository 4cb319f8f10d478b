"""from_pretrained(dense=FORMAT): matrices around the experts in a format of their own."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel

import moerun.hf
from fake_driver import FakeDriver
from moerun.hf.dense import EngineLinear, QuantisedLinear

DEMO = Path(__file__).parents[2] / "examples" / "pycode-moe"
TEXT = (Path(__file__).parents[2] / "python" / "moerun" / "tensors.py").read_text()


def kinds(model: PreTrainedModel) -> set[type]:
    return {type(m) for m in model.modules() if isinstance(m, (torch.nn.Linear, QuantisedLinear))}


def formats(model: PreTrainedModel) -> dict[str, str]:
    """Of every quantised layer, by name."""
    return {
        name: m.moerun_linear.value.format
        for name, m in model.named_modules()
        if isinstance(m, QuantisedLinear)
    }


@torch.no_grad()
def perplexity(model: PreTrainedModel) -> float:
    """Of a piece of Python, which demo models were trained on the like of."""
    ids = AutoTokenizer.from_pretrained(DEMO)(TEXT, return_tensors="pt").input_ids[:, :300]
    return float(model(ids, labels=ids).loss.exp())


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen2_moe", "glm4_moe"])
@pytest.mark.parametrize("name", ["int8", "int4_g32"])
def test_models_generate(random_checkpoint: Callable[..., Path], family: str, name: str) -> None:
    model = moerun.hf.from_pretrained(
        random_checkpoint(family, tie_word_embeddings=False), dense=name, cpu_threads=1
    )
    assert kinds(model) == {QuantisedLinear}
    assert not any("proj" in parameter for parameter, _ in model.named_parameters())
    found = formats(model)
    assert found.pop("lm_head") == ("int8" if name == "int8" else "int8_g128")
    assert set(found.values()) == {name}
    text = model.generate(torch.arange(3, 9).view(1, -1), max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert text.shape == (1, 11)


def test_other_float_formats(random_checkpoint: Callable[..., Path]) -> None:
    """Also the model's own, which keeps the weights, but not as parameters."""
    folder, ids = random_checkpoint("olmoe"), torch.arange(3, 20).view(1, -1)
    with torch.no_grad():
        want = moerun.hf.from_pretrained(folder, cpu_threads=1)(ids).logits
        for name, share in (("fp32", 1e-5), ("fp16", 0.01), ("bf16", 0.05)):
            model = moerun.hf.from_pretrained(folder, dense=name, cpu_threads=1)
            assert set(formats(model).values()) == {name}
            assert float((model(ids).logits - want).norm()) <= share * float(want.norm())


def test_tied_embeddings_stay(random_checkpoint: Callable[..., Path]) -> None:
    folder = random_checkpoint("qwen3_moe", tie_word_embeddings=True)
    model = moerun.hf.from_pretrained(folder, dense="int4_g32", cpu_threads=1)
    assert type(model.lm_head) is EngineLinear
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head" not in formats(model)
    assert formats(model)


def test_a_trained_model_stays_good() -> None:
    """8 bits lose next to nothing; 4 bits, with groups of 32, little."""
    usual = perplexity(moerun.hf.from_pretrained(DEMO, cpu_threads=2))
    assert perplexity(moerun.hf.from_pretrained(DEMO, dense="int8", cpu_threads=2)) <= 1.02 * usual
    assert perplexity(moerun.hf.from_pretrained(DEMO, dense="int4_g32", cpu_threads=2)) <= 1.25 * usual


def test_steps_go_through_the_engine(random_checkpoint: Callable[..., Path]) -> None:
    """And give what the same matrices give all at once."""
    model = moerun.hf.from_pretrained(random_checkpoint("qwen3_moe"), dense="int8_g128", cpu_threads=1)
    ids = torch.arange(3, 20).view(1, -1)
    with torch.no_grad():
        want = model(ids).logits[:, -1]
        cache = model(ids[:, :-1]).past_key_values
        got = model(ids[:, -1:], past_key_values=cache).logits[:, -1]
    room = cache.layers[0].keys.untyped_storage().nbytes()
    assert room > cache.layers[0].keys.nbytes  # room to grow, which the engine gave it
    # Activations meet 8-bit codes in 8 bits or as bf16; not alike for one token and for many.
    assert float((got - want).norm()) <= 0.05 * float(want.norm())


def test_copies_share_the_engine_and_pickles_are_refused(random_checkpoint: Callable[..., Path]) -> None:
    model = moerun.hf.from_pretrained(random_checkpoint("qwen3_moe"), dense="int8", cpu_threads=1)
    ids = torch.arange(3, 20).view(1, -1)
    other = copy.deepcopy(model)
    projection = model.model.layers[0].self_attn.q_proj
    assert other.model.layers[0].self_attn.q_proj.moerun_linear.value is projection.moerun_linear.value
    with torch.no_grad():
        want = model(ids).logits
        del model
        torch.testing.assert_close(other(ids).logits, want)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(projection)


def test_gradients_are_refused_when_asked_for(random_checkpoint: Callable[..., Path]) -> None:
    model = moerun.hf.from_pretrained(random_checkpoint("qwen3_moe"), dense="int8", cpu_threads=1)
    loss = model(torch.arange(3, 20).view(1, -1)).logits.sum()
    with pytest.raises(NotImplementedError, match="inference only"):
        loss.backward()


def test_beside_experts_on_the_stand_in_gpu(random_checkpoint: Callable[..., Path], gpu: FakeDriver) -> None:
    """torch has no GPU here, so that everything but experts stays on the CPU."""
    folder, ids = random_checkpoint("qwen3_moe"), torch.arange(3, 20).view(1, -1)
    on_gpu = moerun.hf.from_pretrained(folder, dense="int8", device="cuda", gpu_cache="1MiB", cpu_threads=1)
    on_cpu = moerun.hf.from_pretrained(folder, dense="int8", device="cpu", cpu_threads=1)
    assert kinds(on_gpu) == {QuantisedLinear}
    with torch.no_grad():
        torch.testing.assert_close(on_gpu(ids).logits, on_cpu(ids).logits, rtol=0, atol=1e-2)
        for model in (on_gpu, on_cpu):
            assert model.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False).shape == (1, 20)
    on_gpu.moerun_engine.close()


def test_refused_where_matrices_go_to_the_gpu(
    random_checkpoint: Callable[..., Path], gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(
        ValueError, match=r"dense='int8' is for matrices that the CPU multiplies.*device='cpu'"
    ):
        moerun.hf.from_pretrained(random_checkpoint("qwen3_moe"), dense="int8", device="cuda")


def test_unknown_formats_are_refused(random_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"dense must be one of .*, or None; got 'int3'"):
        moerun.hf.from_pretrained(random_checkpoint("qwen3_moe"), dense="int3")
