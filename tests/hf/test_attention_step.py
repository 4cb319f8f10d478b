"""Decode steps of attention in the engine: when they go there, when they do not, and that text is the same.

Models are tiny and random. Each is compared with transformers' own, whose caches copy every token.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel, StaticCache

import moerun.hf
from moerun.hf.cache_room import LEAST_ROOM

FAMILIES = ("qwen3_moe", "qwen2_moe", "olmoe", "mixtral", "glm4_moe", "gpt_oss", "deepseek_v2", "deepseek_v3")
PROMPT = 9
CLOSE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture
def load(random_checkpoint: Callable[..., Path]) -> Callable[..., PreTrainedModel]:
    """load(family, **options) -> a model in fp32 whose parts are in an engine."""

    def loaded(family: str = "qwen3_moe", **options: Any) -> PreTrainedModel:
        return moerun.hf.from_pretrained(random_checkpoint(family), cpu_threads=1, **options)

    return loaded


@pytest.fixture
def theirs(random_checkpoint: Callable[..., Path]) -> Callable[..., PreTrainedModel]:
    """theirs(family) -> the same model, all in torch."""
    return lambda family="qwen3_moe", **options: AutoModelForCausalLM.from_pretrained(
        random_checkpoint(family), experts_implementation="eager", **options
    )


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def tokens(rows: int = 1, count: int = PROMPT, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 128, (rows, count), generator=torch.Generator().manual_seed(seed))


def prefilled(model: PreTrainedModel, rows: int = 1) -> Any:
    return model(tokens(rows), use_cache=True).past_key_values


def step(model: PreTrainedModel, cache: Any, **more: Any) -> torch.Tensor:
    """Logits of one more token."""
    rows = cache.layers[0].keys.shape[0]
    return model(tokens(rows, 1, seed=1), past_key_values=cache, **more).logits


def expected(model: PreTrainedModel, rows: int = 1) -> torch.Tensor:
    """What step(model, prefilled(model)) should give, by a model of torch alone or without a cache."""
    ids = torch.cat((tokens(rows), tokens(rows, 1, seed=1)), 1)
    return model(ids, use_cache=False).logits[:, -1:]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_decode_step_goes_through_the_engine(
    load: Callable[..., PreTrainedModel], steps: list[tuple[int, ...]], family: str
) -> None:
    model = load(family)
    model.generate(tokens(), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert steps == [(1, 1)] * (3 * model.config.num_hidden_layers)  # the first comes from the prompt


def test_several_tokens_and_sequences(
    load: Callable[..., PreTrainedModel],
    theirs: Callable[..., PreTrainedModel],
    steps: list[tuple[int, ...]],
) -> None:
    ours, others = load(), theirs()
    cache, more = prefilled(ours, 3), tokens(3, 5, seed=1)
    got = ours(more, past_key_values=cache).logits
    assert set(steps) == {(3, 5)}
    want = others(torch.cat((tokens(3), more), 1)).logits[:, -5:]
    torch.testing.assert_close(got, want, **CLOSE)
    many = tokens(3, 30, seed=2)
    del steps[:]
    got = ours(many, past_key_values=cache).logits
    assert steps == []
    want = others(torch.cat((tokens(3), more, many), 1)).logits[:, -30:]
    torch.testing.assert_close(got, want, **CLOSE)


def test_padded_batches(
    load: Callable[..., PreTrainedModel],
    theirs: Callable[..., PreTrainedModel],
    steps: list[tuple[int, ...]],
) -> None:
    ids, mask = tokens(3), torch.ones(3, PROMPT, dtype=torch.int64)
    for row, padding in enumerate((0, 4, 8)):
        ids[row, :padding], mask[row, :padding] = 2, 0
    texts = [
        model.generate(
            ids, attention_mask=mask, max_new_tokens=20, min_new_tokens=20, do_sample=False, pad_token_id=2
        )
        for model in (load(), theirs())
    ]
    assert steps
    assert torch.equal(*texts)


def test_keys_outgrow_their_room(
    load: Callable[..., PreTrainedModel], theirs: Callable[..., PreTrainedModel]
) -> None:
    ours, others = load(), theirs()
    caches = [prefilled(model) for model in (ours, others)]
    ids = tokens(1, LEAST_ROOM + 40, seed=3)
    rooms = set()
    for at in range(0, ids.shape[1], 8):
        part = ids[:, at : at + 8]
        got, want = (m(part, past_key_values=c).logits for m, c in zip((ours, others), caches, strict=True))
        torch.testing.assert_close(got, want, **CLOSE)
        rooms.add(caches[0].layers[0].keys.untyped_storage().data_ptr())
    assert len(rooms) == 2  # no copy for every step
    for layer, other in zip(caches[0].layers, caches[1].layers, strict=True):
        torch.testing.assert_close(layer.keys, other.keys, **CLOSE)
        torch.testing.assert_close(layer.values, other.values, **CLOSE)


def test_cropping(load: Callable[..., PreTrainedModel], steps: list[tuple[int, ...]]) -> None:
    """What was cropped is forgotten, but stays what it was for who kept it."""
    model = load()
    cache = prefilled(model)
    model(tokens(1, 6, seed=7), past_key_values=cache)
    kept = [(layer.keys, layer.values) for layer in cache.layers]
    copies = [(k.clone(), v.clone()) for k, v in kept]
    cache.crop(-6)
    del steps[:]
    got = step(model, cache)
    assert len(steps) == model.config.num_hidden_layers
    torch.testing.assert_close(got, expected(model), **CLOSE)
    for (keys, values), (keys_then, values_then) in zip(kept, copies, strict=True):
        assert torch.equal(keys, keys_then)
        assert torch.equal(values, values_then)


def test_selecting_and_repeating_sequences(load: Callable[..., PreTrainedModel]) -> None:
    model = load()
    cache = prefilled(model, 3)
    step(model, cache)
    cache.batch_select_indices(torch.tensor([2, 0]))
    ids = torch.cat((tokens(3), tokens(3, 1, seed=1)), 1)[[2, 0]]
    more = tokens(2, 2, seed=5)
    got = model(more, past_key_values=cache).logits
    torch.testing.assert_close(got, model(torch.cat((ids, more), 1)).logits[:, -2:], **CLOSE)
    cache.batch_repeat_interleave(2)
    ids, last = torch.cat((ids, more), 1).repeat_interleave(2, 0), tokens(4, 1, seed=6)
    got = model(last, past_key_values=cache).logits
    torch.testing.assert_close(got, model(torch.cat((ids, last), 1)).logits[:, -1:], **CLOSE)


def test_beam_search(
    load: Callable[..., PreTrainedModel],
    theirs: Callable[..., PreTrainedModel],
    steps: list[tuple[int, ...]],
) -> None:
    texts = [
        model.generate(tokens(2), num_beams=3, max_new_tokens=12, min_new_tokens=12, do_sample=False)
        for model in (load(), theirs())
    ]
    assert set(steps) == {(6, 1)}
    assert torch.equal(*texts)


def test_a_copied_cache_goes_its_own_way(load: Callable[..., PreTrainedModel]) -> None:
    """Before and after the first step, which gives it room that the copy must not share."""
    model = load()
    cache = prefilled(model)
    first = copy.deepcopy(cache)
    step(model, cache)
    second = copy.deepcopy(cache)
    ids = torch.cat((tokens(), tokens(1, 1, seed=1)), 1)
    for seed, (known, branch) in enumerate(((ids, cache), (tokens(), first), (ids, second)), start=10):
        more = tokens(1, 3, seed=seed)
        got = [model(more[:, i : i + 1], past_key_values=branch).logits for i in range(3)]
        want = model(torch.cat((known, more), 1)).logits[:, -3:]
        torch.testing.assert_close(torch.cat(got, 1), want, **CLOSE)


def test_a_cache_made_of_anothers_tensors(load: Callable[..., PreTrainedModel]) -> None:
    model = load()
    cache = prefilled(model)
    step(model, cache)
    other = DynamicCache([(layer.keys, layer.values) for layer in cache.layers])
    ids = torch.cat((tokens(), tokens(1, 1, seed=1)), 1)
    for seed, branch in enumerate((cache, other, cache), start=20):
        more = tokens(1, 1, seed=seed)
        got = model(more, past_key_values=branch).logits
        known = torch.cat((ids, tokens(1, 1, seed=20)), 1) if seed == 22 else ids
        torch.testing.assert_close(got, model(torch.cat((known, more), 1)).logits[:, -1:], **CLOSE)


def test_steps_leave_no_garbage(load: Callable[..., PreTrainedModel]) -> None:
    """Cosines and sines are kept beside each other, for all layers of one step only."""
    model = load()
    cache = prefilled(model)
    made: list[weakref.ref[torch.Tensor]] = []
    hook = model.model.rotary_emb.register_forward_hook(
        lambda module, inputs, outputs: made.extend(map(weakref.ref, outputs))
    )
    for _ in range(3):
        step(model, cache)
    hook.remove()
    gc.collect()
    assert len(made) == 6
    assert all(ref() is None for ref in made)


def replace_q_proj(model: PreTrainedModel) -> None:
    class Adapted(torch.nn.Module):
        """As PEFT puts a low-rank adapter around a layer."""

        def __init__(self, base: torch.nn.Module) -> None:
            super().__init__()
            self.base_layer = base
            self.down = torch.nn.Linear(base.in_features, 2, bias=False)
            self.up = torch.nn.Linear(2, base.out_features, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base_layer(x) + self.up(self.down(x))

    for layer in model.model.layers:
        layer.self_attn.q_proj = Adapted(layer.self_attn.q_proj)


def hook_q_proj(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        layer.self_attn.q_proj.register_forward_hook(lambda module, inputs, output: output * 1.5)


def hook_k_norm(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        layer.self_attn.k_norm.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 0.5,))


def patch_v_proj(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        real = layer.self_attn.v_proj.forward
        layer.self_attn.v_proj.forward = lambda x, real=real: real(x) * 2


def write_to_q_norm(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        layer.self_attn.q_norm.weight.mul_(3)


def replace_k_norm(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        layer.self_attn.k_norm.weight = torch.nn.Parameter(layer.self_attn.k_norm.weight * 3)


def convert(model: PreTrainedModel) -> None:
    model.to(torch.bfloat16).to(torch.float32)


@pytest.mark.parametrize(
    "change",
    [
        replace_q_proj,
        hook_q_proj,
        hook_k_norm,
        patch_v_proj,
        write_to_q_norm,
        replace_k_norm,
        convert,
        PreTrainedModel.train,
    ],
)
def test_changed_modules_are_torchs_again(
    load: Callable[..., PreTrainedModel],
    steps: list[tuple[int, ...]],
    change: Callable[[PreTrainedModel], None],
) -> None:
    model = load()
    before = step(model, prefilled(model))
    del steps[:]
    change(model)
    got = step(model, prefilled(model))
    assert steps == []
    torch.testing.assert_close(got, expected(model), **CLOSE)
    if change is not PreTrainedModel.train:
        assert not torch.equal(got, before)


def test_a_written_bias_counts(load: Callable[..., PreTrainedModel], steps: list[tuple[int, ...]]) -> None:
    """The engine has a copy of the old one, and the weight where it lies."""
    model = load("qwen2_moe")
    for layer in model.model.layers:
        layer.self_attn.q_proj.bias.add_(1.0)
    got = step(model, prefilled(model))
    assert steps == []
    model.set_attn_implementation("eager")
    torch.testing.assert_close(got, step(model, prefilled(model)), **CLOSE)
    x = torch.randn(3, 64)
    projection = model.model.layers[0].self_attn.q_proj
    torch.testing.assert_close(
        projection(x), torch.nn.functional.linear(x, projection.weight, projection.bias), **CLOSE
    )


def test_a_written_weight_counts(load: Callable[..., PreTrainedModel], steps: list[tuple[int, ...]]) -> None:
    """It is read where it lies."""
    model = load()
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.mul_(2)
    got = step(model, prefilled(model))
    assert steps
    torch.testing.assert_close(got, expected(model), **CLOSE)


def test_a_copied_model_is_torchs(load: Callable[..., PreTrainedModel], steps: list[tuple[int, ...]]) -> None:
    model = load()
    other = copy.deepcopy(model)
    want = step(model, prefilled(model))
    del steps[:]
    torch.testing.assert_close(step(other, prefilled(other)), want, **CLOSE)
    assert steps == []


def test_other_attention_is_left_alone(
    load: Callable[..., PreTrainedModel], steps: list[tuple[int, ...]]
) -> None:
    model = load(attn_implementation="eager")
    ids = torch.cat((tokens(), tokens(1, 1, seed=1)), 1)
    attentions = model(ids, output_attentions=True).attentions
    cache = prefilled(model)
    one = model(tokens(1, 1, seed=1), past_key_values=cache, output_attentions=True).attentions
    assert steps == []
    assert len(one) == model.config.num_hidden_layers
    for got, want in zip(one, attentions, strict=True):
        torch.testing.assert_close(got, want[:, :, -1:], **CLOSE)
    model.set_attn_implementation("sdpa")
    step(model, prefilled(model))
    assert steps


def test_other_caches_are_left_alone(
    load: Callable[..., PreTrainedModel], steps: list[tuple[int, ...]]
) -> None:
    class Counting(DynamicCache):
        updates = 0

        def update(self, *arguments: Any, **more: Any) -> Any:
            self.updates += 1
            return super().update(*arguments, **more)

    model = load()
    counting = Counting(config=model.config)
    for cache in (StaticCache(config=model.config, max_cache_len=32), counting):
        model(tokens(), past_key_values=cache)
        torch.testing.assert_close(step(model, cache), expected(model), **CLOSE)
    assert counting.updates == 2 * model.config.num_hidden_layers
    assert steps == []


def test_gradients_are_torchs(load: Callable[..., PreTrainedModel], steps: list[tuple[int, ...]]) -> None:
    model = load()
    cache = prefilled(model)
    with torch.enable_grad():
        logits = step(model, cache)
    assert logits.requires_grad
    assert steps == []


def test_inference_mode(load: Callable[..., PreTrainedModel], steps: list[tuple[int, ...]]) -> None:
    with torch.inference_mode():
        model = load()
        got = step(model, prefilled(model))
    assert steps
    torch.testing.assert_close(got.clone(), expected(model), **CLOSE)


def test_compiled_models(load: Callable[..., PreTrainedModel], steps: list[tuple[int, ...]]) -> None:
    model = load()
    cache = prefilled(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    got = step(compiled, cache)
    assert steps == []
    torch.testing.assert_close(got, expected(model), **CLOSE)


def test_two_models_at_once(
    load: Callable[..., PreTrainedModel], theirs: Callable[..., PreTrainedModel]
) -> None:
    pairs = [(load(family), theirs(family)) for family in ("qwen3_moe", "olmoe")]
    caches = [prefilled(ours) for ours, _ in pairs]
    for (ours, others), cache in zip(pairs, caches, strict=True):
        torch.testing.assert_close(step(ours, cache), expected(others), **CLOSE)
    pairs[0][0].moerun_engine.close()
    torch.testing.assert_close(
        pairs[1][0](tokens(1, 1, seed=9), past_key_values=caches[1]).logits,
        pairs[1][1](torch.cat((tokens(), tokens(1, 1, seed=1), tokens(1, 1, seed=9)), 1)).logits[:, -1:],
        **CLOSE,
    )
    with pytest.raises(RuntimeError, match="closed"):
        step(pairs[0][0], caches[0])
