"""The RMS norms of a transformers model: one call instead of six small operations of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from moerun.dense import RmsNorm
from moerun.hf.dense import may_skip_torch, mix_in, modules_of
from moerun.hf.held import Held
from moerun.hf.original import Original

if TYPE_CHECKING:
    from moerun.engine import Engine


class EngineNorm(torch.nn.Module):
    moerun_norm: Held[RmsNorm]
    moerun_weight: Original

    weight: torch.nn.Parameter

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if may_skip_torch(hidden_states) and self.moerun_weight.is_still(self.weight):
            return self.moerun_norm.value.forward(hidden_states)
        return super().forward(hidden_states)


def norm_of(module: Any) -> RmsNorm | None:
    """The engine's norm of a module, if calling the module would do nothing else than run it."""
    if not isinstance(module, EngineNorm) or module._forward_hooks or module._forward_pre_hooks:
        return None
    return module.moerun_norm.value if module.moerun_weight.is_still(module.weight) else None


def attach_norms(model: torch.nn.Module, engine: Engine) -> int:
    """Gives every RMS norm with a weight to the engine; returns how many.

    All families of moerun have Llama's: ``weight * (x * rsqrt(mean(x**2) + variance_epsilon))``.
    """
    count = 0
    for module in modules_of(model):
        if not type(module).__name__.endswith("RMSNorm") or not hasattr(module, "variance_epsilon"):
            continue
        weight = module.weight
        norm = RmsNorm(engine, weight.detach(), module.variance_epsilon)
        module.moerun_norm = Held(norm, 0)
        module.moerun_weight = Original(weight)
        mix_in(EngineNorm, module)
        count += 1
    return count
