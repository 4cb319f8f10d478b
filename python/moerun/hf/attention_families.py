"""Which attention of transformers is which of moerun.dense, and the parts of its modules that it reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from moerun.dense import Attention, CachedAttention, HeadNorm, LatentAttention, LatentProjections

if TYPE_CHECKING:
    from moerun.engine import Engine


class Family(NamedTuple):
    """Attention modules that are alike."""

    build: Callable[[Engine, Any, list[Any]], CachedAttention | None]
    linears: tuple[str, ...]  # modules, in the order of the attention's projections
    norms: tuple[str, ...]  # modules, of which a module has all or none
    implementation: str = "sdpa"  # that it stands for; "eager" gives weights too, which a watcher would miss
    one_angle: bool = False  # whether cosines and sines come once for the two elements that they turn


def family_of(module: Any) -> Family | None:
    """What is known of a module, by the name of its class."""
    family = _KNOWN.get(type(module).__name__)
    if family is not None and family.build is _latent and module.q_lora_rank is None:
        return family._replace(linears=("q_proj", *_REST))
    return family


def _grouped_query(engine: Engine, module: Any, linears: list[Any]) -> Attention | None:
    if len({linear.format for linear in linears[:3]}) > 1:
        return None
    norm = None
    if "q_norm" in module._modules:
        norm = HeadNorm(
            module.q_norm.weight.detach(), module.k_norm.weight.detach(), module.q_norm.variance_epsilon
        )
    sinks = getattr(module, "sinks", None)
    query, key, value, output = linears
    return Attention(
        engine,
        query,
        key,
        value,
        output,
        module.head_dim,
        scale=module.scaling,
        norm=norm,
        clip=getattr(module.config, "clip_qkv", None),
        sinks=None if sinks is None else sinks.detach(),
    )


def _latent(engine: Engine, module: Any, linears: list[Any]) -> LatentAttention | None:
    query, *query_up, latent, expand, output = linears
    if query.format != latent.format or expand.weight is None or expand.has_bias:
        return None
    norm, query_norm = module.kv_a_layernorm, module.q_a_layernorm
    if query_norm is not None and query_norm.variance_epsilon != norm.variance_epsilon:
        return None
    return LatentAttention(
        engine,
        LatentProjections(query, latent, expand, output, *query_up),
        module.num_heads,
        module.qk_rope_head_dim,
        norm.weight.detach(),
        query_norm=None if query_norm is None else query_norm.weight.detach(),
        epsilon=norm.variance_epsilon,
        pairs=_pairs_of(module),
        scale=module.scaling,
    )


def _pairs_of(module: Any) -> str:
    if type(module).__name__ == "DeepseekV2Attention":
        return "neighbours"
    return "neighbours_to_halves" if module.config.rope_interleave else "halves"


_GROUPED = Family(_grouped_query, ("q_proj", "k_proj", "v_proj", "o_proj"), ("q_norm", "k_norm"))
_REST = ("kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
_WITH_RANK = Family(_latent, ("q_a_proj", "q_b_proj", *_REST), ("q_a_layernorm", "kv_a_layernorm"))
_KNOWN = {
    "Qwen3MoeAttention": _GROUPED,
    "Qwen2MoeAttention": _GROUPED,
    "OlmoeAttention": _GROUPED,
    "MixtralAttention": _GROUPED,
    "Glm4MoeAttention": _GROUPED,
    "GptOssAttention": _GROUPED._replace(implementation="eager", one_angle=True),
    "DeepseekV2Attention": _WITH_RANK._replace(one_angle=True),
    "DeepseekV3Attention": _WITH_RANK,
}
