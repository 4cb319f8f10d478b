"""The dense linear layers of a transformers model on the engine's threads and kernels.

Around the experts a decode step is matrix-vector products again (attention projections, shared experts, the
head over the vocabulary), and torch's are two to four times slower than memory allows. The weights stay the
modules' own parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moerun.hf.held import Held
from moerun.torch_ops import register_linear

if TYPE_CHECKING:
    from moerun.engine import Engine
    from moerun.linear import Linear

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class EngineLinear(torch.nn.Linear):
    """torch.nn.Linear that runs in an engine as long as its weight stays where it was."""

    moerun_linear: Held[Linear]

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
        linear = engine.add_linear(weight, None if bias is None else bias.detach())
        module.__class__ = EngineLinear
        module.moerun_linear = Held(linear, register_linear(linear))  # type: ignore[assignment]
        count += 1
    return count
