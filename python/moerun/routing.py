"""Reference routers: which experts a token is sent to, and with which weights, for every family.

Plain functions from router logits to (ids, weights), for tests and for the replay of routing traces. The
models that `moerun.hf` loads use their own routers; these agree with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

FAMILIES = (
    "qwen3_moe",
    "qwen2_moe",
    "olmoe",
    "mixtral",
    "deepseek_v2",
    "deepseek_v3",
    "glm4_moe",
    "gpt_oss",
)

# What the families that choose by sigmoid assume where config.json is silent (transformers' defaults).
_SIGMOID_DEFAULTS: dict[str, dict[str, Any]] = {
    "deepseek_v3": {"n_group": 8, "topk_group": 4, "norm_topk_prob": True, "routed_scaling_factor": 2.5},
    "glm4_moe": {"n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0},
}


class Routing(NamedTuple):
    """ids int64 [T, k], best first, and the weights fp32 [T, k] that belong to them."""

    ids: torch.Tensor
    weights: torch.Tensor


def route(
    family: str,
    config: Mapping[str, Any],
    logits: torch.Tensor,
    correction_bias: torch.Tensor | None = None,
) -> Routing:
    """Routes as `family` does.

    Parameters
    ----------
    family
        model_type of the config, one of `FAMILIES`.
    config
        The fields of config.json. Those that are absent take transformers' defaults.
    logits
        [T, E], any floating dtype, with the router's bias where the family has one (gpt_oss).
    correction_bias
        e_score_correction_bias [E] of deepseek_v3 and glm4_moe; None for the others.

    Returns
    -------
    Routing
        ids int64 [T, k], best first, and weights fp32 [T, k].

    Raises
    ------
    ValueError
        Unknown family, a correction bias missing or superfluous, or what the family's function refuses.
    """
    if family not in FAMILIES:
        raise ValueError(f"no router for family {family!r}; known: {', '.join(FAMILIES)}")
    if (family in _SIGMOID_DEFAULTS) != (correction_bias is not None):
        needed = "needs the router's" if family in _SIGMOID_DEFAULTS else "has no"
        raise ValueError(f"{family} {needed} correction_bias (e_score_correction_bias)")

    top_k = config["num_experts_per_tok"]
    if family == "gpt_oss":
        return topk_softmax(logits, top_k)
    if family == "deepseek_v2":
        limited = config.get("topk_method", "greedy") == "group_limited_greedy"
        return grouped_softmax_topk(
            logits,
            top_k,
            num_groups=config["n_group"] if limited else 1,
            groups_kept=config["topk_group"] if limited else 1,
            scale=config.get("routed_scaling_factor", 1.0),
        )
    if correction_bias is not None:
        fields = {**_SIGMOID_DEFAULTS[family], **config}
        return grouped_sigmoid_topk(
            logits,
            top_k,
            correction_bias=correction_bias,
            num_groups=fields["n_group"],
            groups_kept=fields["topk_group"],
            renormalize=fields["norm_topk_prob"],
            scale=fields["routed_scaling_factor"],
        )
    return softmax_topk(logits, top_k, renormalize=family == "mixtral" or config.get("norm_topk_prob", False))


def renormalizes(family: str, config: Mapping[str, Any]) -> bool:
    """Whether the weights of a token's experts have the same sum for every token, in `family` with `config`.

    Raises
    ------
    ValueError
        Unknown family.
    """
    if family not in FAMILIES:
        raise ValueError(f"no router for family {family!r}; known: {', '.join(FAMILIES)}")
    if family in ("mixtral", "gpt_oss"):
        return True
    if family == "deepseek_v2":
        return False
    return bool({**_SIGMOID_DEFAULTS.get(family, {}), **config}.get("norm_topk_prob", False))


def softmax_topk(logits: torch.Tensor, top_k: int, *, renormalize: bool) -> Routing:
    """The k largest softmax probabilities of logits [T, E]; with `renormalize` they sum to one.

    Mixtral (arXiv 2401.04088) always renormalises; the Qwen MoE models and OLMoE as their config says.
    Raises ValueError if logits are not [T, E] or k is not in 1..E.
    """
    _check(logits, top_k)
    weights, ids = logits.float().softmax(dim=-1).topk(top_k)
    return Routing(ids, weights / weights.sum(dim=-1, keepdim=True) if renormalize else weights)


def topk_softmax(logits: torch.Tensor, top_k: int) -> Routing:
    """A softmax over the k largest of logits [T, E] (gpt-oss, arXiv 2508.10925, whose logits include a bias).

    Raises ValueError if logits are not [T, E] or k is not in 1..E.
    """
    _check(logits, top_k)
    largest, ids = logits.float().topk(top_k)
    return Routing(ids, largest.softmax(dim=-1))


def grouped_softmax_topk(
    logits: torch.Tensor, top_k: int, *, num_groups: int = 1, groups_kept: int = 1, scale: float = 1.0
) -> Routing:
    """DeepSeek-V2's device-limited routing (arXiv 2405.04434, section 2.2.2) of logits [T, E].

    The experts form `num_groups` equal groups, and only the `groups_kept` groups that hold the largest
    probabilities take part; one group is plain greedy routing. Weights are probabilities times `scale`, not
    renormalised.
    Raises ValueError if logits are not [T, E], or the sizes do not fit each other.
    """
    _check(logits, top_k, num_groups, groups_kept)
    scores = logits.float().softmax(dim=-1)
    group_scores = _in_groups(scores, num_groups).amax(dim=-1)
    ids = _keep_groups(scores, group_scores, groups_kept).topk(top_k).indices
    return Routing(ids, scores.gather(-1, ids) * scale)


def grouped_sigmoid_topk(
    logits: torch.Tensor,
    top_k: int,
    *,
    correction_bias: torch.Tensor,
    num_groups: int = 1,
    groups_kept: int = 1,
    renormalize: bool = True,
    scale: float = 1.0,
) -> Routing:
    """DeepSeek-V3's routing (arXiv 2412.19437, section 2.1.2) of logits [T, E]; GLM-4.5 uses it too.

    Experts are chosen by sigmoid(logits) + `correction_bias` [E], among the `groups_kept` groups whose two
    best experts have the largest sum. Weights come from the scores without the bias, renormalised, times
    `scale`. Raises ValueError if logits are not [T, E], or the sizes do not fit each other.
    """
    _check(logits, top_k, num_groups, groups_kept)
    scores = logits.float().sigmoid()
    choice = scores + correction_bias.float()
    groups = _in_groups(choice, num_groups)
    group_scores = groups.topk(min(2, groups.shape[-1])).values.sum(dim=-1)
    ids = _keep_groups(choice, group_scores, groups_kept).topk(top_k).indices
    weights = scores.gather(-1, ids)
    if renormalize:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)  # a row of zeros stays a row of zeros
    return Routing(ids, weights * scale)


def _in_groups(scores: torch.Tensor, num_groups: int) -> torch.Tensor:
    return scores.unflatten(-1, (num_groups, -1))  # [T, E] -> [T, num_groups, E / num_groups]


def _keep_groups(scores: torch.Tensor, group_scores: torch.Tensor, groups_kept: int) -> torch.Tensor:
    """scores [T, E] with -inf outside of each row's best groups, by group_scores [T, num_groups]."""
    import torch

    dropped = torch.ones_like(group_scores, dtype=torch.bool)
    dropped.scatter_(-1, group_scores.topk(groups_kept).indices, False)
    return (
        _in_groups(scores, group_scores.shape[-1]).masked_fill(dropped.unsqueeze(-1), -torch.inf).flatten(-2)
    )


def _check(logits: torch.Tensor, top_k: int, num_groups: int = 1, groups_kept: int = 1) -> None:
    if logits.dim() != 2:
        raise ValueError(f"logits must be [tokens, experts], got shape {tuple(logits.shape)}")
    experts = logits.shape[1]
    if num_groups < 1 or experts % num_groups:
        raise ValueError(f"{experts} experts do not divide into {num_groups} groups of one size")
    if not 1 <= groups_kept <= num_groups:
        raise ValueError(f"{groups_kept} of {num_groups} groups are to be kept; it must be 1..{num_groups}")
    eligible = experts // num_groups * groups_kept
    if not 1 <= top_k <= eligible:
        raise ValueError(f"top_k is {top_k}, but there are {eligible} experts to choose from")
