"""The dense linear layers of a transformers model on the engine's threads and kernels.

Around the experts a decode step is matrix-vector products again (attention projections, shared experts, the
head over the vocabulary), and torch's are two to four times slower than memory allows. The weights stay the
modules' own parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from moerun.torch_ops import register_linear

if TYPE_CHECKING:
    from moerun.engine import Engine
    from moerun.linear import Linear

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class HeldLinear:
    """What a linear module holds beside its parameters. Copies share it and fall back to torch."""

    def __init__(self, linear: Linear) -> None:
        self.linear = linear
        self.handle = register_linear(linear)

    def __deepcopy__(self, memo: dict[int, Any]) -> HeldLinear:
        return self


class EngineLinear(torch.nn.Linear):
    """torch.nn.Linear that runs in an engine as long as its weight stays where it was."""

    moerun_linear: HeldLinear

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.ops.moerun.linear(input, self.weight, self.bias, self.moerun_linear.handle)


def attach_linears(model: torch.nn.Module, engine: Engine) -> int:
    """Gives every plain torch.nn.Linear of `model` in host memory to the engine; returns how many."""
    count = 0
    for module in model.modules():
        if type(module) is not torch.nn.Linear:
            continue
        weight, bias = module.weight.detach(), module.bias
        if weight.device.type != "cpu" or weight.dtype not in _FLOATS:
            continue
        held = HeldLinear(engine.add_linear(weight, None if bias is None else bias.detach()))
        module.__class__ = EngineLinear
        module.moerun_linear = held  # type: ignore[assignment]
        count += 1
    return count
