"""The routers of a transformers model: one call instead of a dozen small operations of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from moerun.dense import Router
from moerun.hf.dense import may_skip_torch, mix_in, modules_of
from moerun.hf.held import Held
from moerun.hf.original import Original

if TYPE_CHECKING:
    from moerun.engine import Engine


def _softmax(module: Any, **more: Any) -> dict[str, Any]:
    return {"renormalise": getattr(module, "norm_topk_prob", False), **more}


def _grouped_sigmoid(module: Any) -> dict[str, Any]:
    return {
        "scoring": "sigmoid",
        "renormalise": module.norm_topk_prob,
        "scale": module.routed_scaling_factor,
        "correction": module.e_score_correction_bias,
        "groups": module.num_group,
        "top_groups": module.topk_group,
    }


# transformers' routers that return (logits, weights, ids): options of Router, and whether their logits are
# computed in float32 from rounded factors.
_OPTIONS: dict[str, tuple[Callable[[Any], dict[str, Any]], bool]] = {
    "Qwen3MoeTopKRouter": (_softmax, False),
    "Qwen2MoeTopKRouter": (_softmax, False),
    "OlmoeTopKRouter": (_softmax, False),
    "MixtralTopKRouter": (lambda module: _softmax(module, renormalise=True), False),
    "GptOssTopKRouter": (lambda module: _softmax(module, renormalise=True, bias=module.bias.detach()), False),
    "Glm4MoeTopkRouter": (_grouped_sigmoid, True),
    "DeepseekV3TopkRouter": (_grouped_sigmoid, True),
}


class EngineRouter(torch.nn.Module):
    moerun_router: Held[Router]
    moerun_originals: tuple[Original, ...]

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if may_skip_torch(hidden_states) and self.is_unchanged():
            rows = hidden_states.reshape(-1, hidden_states.shape[-1])
            return tuple(self.moerun_router.value.forward(rows))
        return super().forward(hidden_states)

    def is_unchanged(self) -> bool:
        """Whether parameters and buffers are those that the engine reads."""
        return all(o.is_still(t) for o, t in zip(self.moerun_originals, _tensors(self), strict=True))


def _tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers."""
    return [t for part in (module._parameters, module._buffers) for t in part.values() if t is not None]


def attach_routers(model: torch.nn.Module, engine: Engine) -> int:
    """Gives every router that is known here to the engine; returns how many."""
    count = 0
    for module in modules_of(model):
        found = _OPTIONS.get(type(module).__name__)
        if found is None:
            continue
        options, in_float32 = found
        router = Router(
            engine, module.weight.detach(), module.top_k, float32_logits=in_float32, **options(module)
        )
        module.moerun_router = Held(router, 0)
        module.moerun_originals = tuple(map(Original, _tensors(module)))
        mix_in(EngineRouter, module)
        count += 1
    return count
