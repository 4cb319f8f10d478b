"""The reference routers choose and weigh as transformers' own router modules do; what always holds, holds."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moerun import routing

ROUTER_CLASSES = {
    "qwen3_moe": "Qwen3MoeTopKRouter",
    "qwen2_moe": "Qwen2MoeTopKRouter",
    "olmoe": "OlmoeTopKRouter",
    "mixtral": "MixtralTopKRouter",
    "deepseek_v2": "DeepseekV2TopkRouter",
    "deepseek_v3": "DeepseekV3TopkRouter",
    "glm4_moe": "Glm4MoeTopkRouter",
    "gpt_oss": "GptOssTopKRouter",
}
HIDDEN = 24


@st.composite
def router_configs(draw: st.DrawFn, min_group_size: int = 1) -> dict:
    """Fields of a config.json that fit each other; every family reads those it knows."""
    groups = draw(st.integers(1, 6))
    group_size = draw(st.integers(min_group_size, 6))
    groups_kept = draw(st.integers(1, groups))
    return {
        "num_experts": groups * group_size,
        "num_experts_per_tok": draw(st.integers(1, groups_kept * group_size)),
        "norm_topk_prob": draw(st.booleans()),
        "topk_method": draw(st.sampled_from(["greedy", "group_limited_greedy"])),
        "n_group": groups,
        "topk_group": groups_kept,
        "routed_scaling_factor": draw(st.sampled_from([1.0, 2.5, 16.0])),
    }


def transformers_router(family: str, fields: dict) -> torch.nn.Module:
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    config = SimpleNamespace(hidden_size=HIDDEN, num_local_experts=fields["num_experts"], **fields)
    router = getattr(module, ROUTER_CLASSES[family])(config)
    for tensor in (*router.parameters(), *router.buffers()):
        torch.nn.init.normal_(tensor, std=0.3)
    return router


def dense(ids: torch.Tensor, weights: torch.Tensor, experts: int) -> torch.Tensor:
    """[T, E] weights by expert, zero where an expert was not chosen."""
    return torch.zeros(ids.shape[0], experts).scatter_add_(1, ids, weights.float())


@pytest.mark.parametrize("family", routing.FAMILIES)
@settings(max_examples=40, deadline=None)
@given(fields=router_configs(min_group_size=2), seed=st.integers(0, 2**32 - 1))
@torch.no_grad()
def test_agrees_with_transformers(family: str, fields: dict, seed: int) -> None:
    torch.manual_seed(seed)
    router = transformers_router(family, fields)
    logits, weights, ids = router(torch.randn(7, HIDDEN))

    ours = routing.route(family, fields, logits, getattr(router, "e_score_correction_bias", None))

    assert ours.ids.dtype == torch.int64
    assert ours.weights.dtype == torch.float32
    experts = fields["num_experts"]
    torch.testing.assert_close(dense(*ours, experts), dense(ids, weights, experts))


@pytest.mark.parametrize("family", routing.FAMILIES)
@settings(max_examples=40, deadline=None)
@given(fields=router_configs(), seed=st.integers(0, 2**32 - 1))
def test_invariants(family: str, fields: dict, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    experts, top_k = fields["num_experts"], fields["num_experts_per_tok"]
    logits = torch.randn(5, experts, generator=generator) * 3
    sigmoid = family in ("deepseek_v3", "glm4_moe")
    bias = torch.randn(experts, generator=generator) if sigmoid else None

    ids, weights = routing.route(family, fields, logits, bias)

    assert ids.shape == weights.shape == (5, top_k)
    assert ((ids >= 0) & (ids < experts)).all()
    assert all(len(set(row)) == top_k for row in ids.tolist()), "an expert was chosen twice"
    assert (weights >= 0).all()
    if not sigmoid:  # chosen by what they are weighed by: best first
        assert (weights.diff(dim=1) <= 0).all()
    if family in ("mixtral", "gpt_oss"):
        torch.testing.assert_close(weights.sum(1), torch.ones(5))
    if sigmoid and fields["norm_topk_prob"]:
        torch.testing.assert_close(weights.sum(1), torch.full((5,), fields["routed_scaling_factor"]))
    if sigmoid or (family == "deepseek_v2" and fields["topk_method"] == "group_limited_greedy"):
        group_size = experts // fields["n_group"]
        assert all(len({i // group_size for i in row}) <= fields["topk_group"] for row in ids.tolist())

    # Tokens do not see each other.
    order = torch.randperm(5, generator=generator)
    shuffled = routing.route(family, fields, logits[order], bias)
    assert torch.equal(shuffled.ids, ids[order])
    torch.testing.assert_close(shuffled.weights, weights[order])


def test_absent_fields_take_the_defaults_of_transformers() -> None:
    from transformers import AutoConfig

    torch.manual_seed(0)
    for family in routing.FAMILIES:
        fields = AutoConfig.for_model(family).to_dict()
        fields.update(num_experts=16, num_local_experts=16, n_routed_experts=16, num_experts_per_tok=3)
        sigmoid = family in ("deepseek_v3", "glm4_moe")
        logits, bias = torch.randn(4, 16), torch.randn(16) if sigmoid else None
        sparse = routing.route(family, {"num_experts_per_tok": 3}, logits, bias)
        full = routing.route(family, fields, logits, bias)
        assert torch.equal(sparse.ids, full.ids)
        torch.testing.assert_close(sparse.weights, full.weights)


def test_half_precision_logits_are_routed_in_fp32() -> None:
    logits = torch.randn(4, 16).bfloat16()
    half = routing.softmax_topk(logits, 4, renormalize=True)
    full = routing.softmax_topk(logits.float(), 4, renormalize=True)
    assert torch.equal(half.ids, full.ids)
    assert torch.equal(half.weights, full.weights)


@pytest.mark.parametrize(
    ("family", "fields", "bias", "message"),
    [
        ("llama", {}, None, "no router for family 'llama'; known: qwen3_moe"),
        ("deepseek_v3", {}, None, "needs the router's correction_bias"),
        ("mixtral", {}, torch.zeros(8), "mixtral has no correction_bias"),
        ("qwen3_moe", {"num_experts_per_tok": 9}, None, "top_k is 9, but there are 8 experts"),
        ("glm4_moe", {"n_group": 3}, torch.zeros(8), "8 experts do not divide into 3 groups"),
        ("glm4_moe", {"n_group": 4, "topk_group": 5}, torch.zeros(8), "5 of 4 groups"),
        ("glm4_moe", {"n_group": 8, "topk_group": 2, "num_experts_per_tok": 3}, torch.zeros(8), "top_k is 3"),
    ],
)
def test_refuses_what_does_not_fit(
    family: str, fields: dict, bias: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        routing.route(family, {"num_experts_per_tok": 2, **fields}, torch.randn(3, 8), bias)


def test_refuses_logits_of_a_whole_batch() -> None:
    with pytest.raises(ValueError, match=r"\[tokens, experts\], got shape \(2, 3, 8\)"):
        routing.softmax_topk(torch.randn(2, 3, 8), 2, renormalize=True)
