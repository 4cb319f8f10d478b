"""Which experts a pass uses: the first of the router's choice, weighed as the family weighs them."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

import moerun
from moerun import routing
from moerun.big_little.selection import Choice, little_choice, sorted_choice
from moerun.big_little.setup import selection_for
from random_checkpoints import FAMILIES
from random_prompts import padded


@pytest.mark.parametrize("family", routing.FAMILIES)
@settings(max_examples=30, deadline=None)
@given(
    top_k=st.integers(2, 6),
    little_k=st.integers(1, 6),
    renormalize=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_little_choice_is_what_the_router_would_choose_with_a_smaller_k(
    family: str, top_k: int, little_k: int, renormalize: bool, seed: int
) -> None:
    little_k = min(little_k, top_k)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 12, generator=generator)
    fields = {"norm_topk_prob": renormalize, "n_group": 3, "topk_group": 2, "routed_scaling_factor": 2.5}
    # Where a bias takes part in choosing, the weight ranks; without one both orders are the same.
    bias = torch.zeros(12) if family in ("deepseek_v3", "glm4_moe") else None
    full = routing.route(family, {**fields, "num_experts_per_tok": top_k}, logits, bias)
    expected = routing.route(family, {**fields, "num_experts_per_tok": little_k}, logits, bias)

    shuffled = torch.randperm(top_k, generator=generator)
    choice = sorted_choice(full.ids[:, shuffled], full.weights[:, shuffled])
    little = little_choice(choice, little_k, routing.renormalizes(family, fields))
    assert torch.equal(little.ids, expected.ids)
    torch.testing.assert_close(little.weights, expected.weights)


def test_the_weights_of_the_kept_have_the_sum_of_all_in_bf16_too() -> None:
    choice = Choice(torch.arange(4)[None], torch.tensor([[0.5, 0.25, 0.15, 0.1]]).bfloat16())
    kept = little_choice(choice, 2, renormalize=True).weights
    assert kept.dtype == torch.float32
    torch.testing.assert_close(kept.sum(), choice.weights.float().sum())


def test_renormalizes_knows_the_families() -> None:
    assert routing.renormalizes("mixtral", {})
    assert routing.renormalizes("glm4_moe", {})
    assert routing.renormalizes("qwen3_moe", {"norm_topk_prob": True})
    assert not routing.renormalizes("qwen2_moe", {})
    assert not routing.renormalizes("deepseek_v2", {"norm_topk_prob": True})
    with pytest.raises(ValueError, match="no router for family 'llama'"):
        routing.renormalizes("llama", {})


@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_reads_what_was_selected_and_no_more(family: str, pair_of: Callable) -> None:
    model = pair_of(family).ours
    selection = selection_for(model, moerun.BigLittle(little_k=1))
    inputs = padded([5, 5])

    def engine_read() -> int:
        """Experts active in the next pass, over all layers, by what the engine counts in bytes."""
        stats = model.moerun_engine.stats()["layers"]
        return sum(layer["weight_bytes"] for layer in stats) // expert_bytes

    one = model.moerun_engine.layers[0].spec
    expert_bytes = 3 * one.hidden_size * one.intermediate_size * 4
    layers = len(model.moerun_engine.layers)
    with torch.no_grad(), selection:
        for little, routed in ((False, None), (True, None), (True, [True] * 5 + [False] * 5)):
            before, counted = engine_read(), selection.experts_read
            selection.use(little, None if routed is None else torch.tensor(routed))
            model(**inputs)
            read = engine_read() - before
            assert read == selection.experts_read - counted
            if routed is not None:
                assert layers <= read <= layers * 5  # of five tokens, one expert each
                assert selection.choices.keys() == selection.layers.keys()
                assert all(len(choice.ids) == 10 for choice in selection.choices.values())
        selection.use(little=True, routed=torch.zeros(10, dtype=torch.bool))
        before = engine_read()
        model(**inputs)
        assert engine_read() == before


@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_with_all_experts_is_not_watched_and_still_counted(family: str, pair_of: Callable) -> None:
    model = pair_of(family).ours
    token = padded([1])
    with torch.no_grad(), selection_for(model, moerun.BigLittle(little_k=1)) as selection:
        modules = selection.modules.values()
        assert all(module._forward_pre_hooks for module in modules)
        usual = model(**token).logits
        before, counted = _weight_bytes(model), selection.experts_read
        selection.use(little=False, single=True)
        assert not any(module._forward_pre_hooks for module in modules)
        assert torch.equal(model(**token).logits, usual)
        expert_bytes = (_weight_bytes(model) - before) / (selection.experts_read - counted)
        selection.use(little=True, single=True)
        assert all(module._forward_pre_hooks for module in modules)
        before, counted = _weight_bytes(model), selection.experts_read
        model(**token)
        assert selection.experts_read - counted == len(selection.layers)
        assert _weight_bytes(model) - before == expert_bytes * len(selection.layers)
    assert not any(module._forward_pre_hooks for module in modules)


def _weight_bytes(model: PreTrainedModel) -> int:
    return sum(layer["weight_bytes"] for layer in model.moerun_engine.stats()["layers"])


def test_shared_experts_run_for_tokens_without_experts(pair_of: Callable) -> None:
    model = pair_of("deepseek_v2").ours
    seen = []
    handle = model.model.layers[1].mlp.shared_experts.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.abs().sum().item())
    )
    selection = selection_for(model, moerun.BigLittle())
    with torch.no_grad(), selection:
        selection.use(little=True, routed=torch.zeros(3, dtype=torch.bool))
        model(**padded([3]))
    handle.remove()
    assert seen[0] > 0


def test_another_thread_is_not_affected_and_nothing_stays_behind(pair_of: Callable) -> None:
    model = pair_of("qwen3_moe").ours
    inputs = padded([6])
    results = []

    def run() -> None:
        with torch.no_grad():
            results.append(model(**inputs).logits)

    run()
    selection = selection_for(model, moerun.BigLittle(little_k=1))

    def fail() -> None:
        with selection:
            selection.use(little=True)
            run()
            other = Thread(target=run)
            other.start()
            other.join()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    run()
    usual, little, other, after = results
    assert not torch.equal(little, usual)
    assert torch.equal(other, usual)
    assert torch.equal(after, usual)
