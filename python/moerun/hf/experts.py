"""The experts of a transformers model: the function it calls for them, and the engine layer of each module.

transformers passes no layer number to a registered experts function, so every experts module carries its own
layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers.integrations.moe import ExpertsInterface

from moerun.hf.dense import is_watched
from moerun.hf.held import Held
from moerun.torch_ops import register_layer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from moerun.engine import Layer

IMPLEMENTATION = "moerun"  # the name under which transformers knows the function


def experts_forward(
    module: torch.nn.Module,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """hidden_states [T, H], top_k_index int64 [T, k], top_k_weights [T, k] -> [T, H] like hidden_states."""
    held = getattr(module, "moerun_layer", None)
    if held is None:
        raise RuntimeError("this model's experts have no engine; load it with moerun.hf.from_pretrained")
    hints = getattr(module, "moerun_hints", None)
    if hints is None or torch.compiler.is_compiling():
        return torch.ops.moerun.experts(hidden_states, top_k_index, top_k_weights, held.handle)
    hints.value.predict(hidden_states)
    out = torch.ops.moerun.experts(hidden_states, top_k_index, top_k_weights, held.handle)
    hints.value.hand_over()
    return out


ExpertsInterface.register(IMPLEMENTATION, experts_forward)


def layer_of(module: Any) -> Layer | None:
    """The engine's layer of an experts module, if calling the module would do nothing else than run it."""
    held = getattr(module, "moerun_layer", None)
    return None if held is None or is_watched(module) else held.value


def experts_modules(model: PreTrainedModel) -> dict[int, torch.nn.Module]:
    """The experts modules of `model` by layer number."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "is_transposed"):  # transformers' @use_experts_implementation sets it
            number = re.search(r"\.layers\.(\d+)\.", f".{name}")
            if number is None:
                raise ValueError(f"{type(model).__name__} has experts outside of its layers, in {name}")
            found[int(number[1])] = module
    return found


def attach_layers(model: PreTrainedModel, layers: Mapping[int, Layer]) -> None:
    """Gives every experts module of `model` its engine layer; `layers` has one for each."""
    for number, module in experts_modules(model).items():
        module.moerun_layer = Held(layers[number], register_layer(layers[number]))  # type: ignore[assignment]
