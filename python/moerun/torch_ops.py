"""torch.ops.moerun.experts: one layer of experts as a torch operator, which torch.compile keeps whole.

The adapters call it; the work is `Layer.forward`. An operator's arguments are tensors and numbers, so a layer
is named by an integer that `register_layer` gives out. Layers are held weakly.
"""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from moerun.engine import Layer

_layers: weakref.WeakValueDictionary[int, Layer] = weakref.WeakValueDictionary()
_new_handle = itertools.count(1)


def register_layer(layer: Layer) -> int:
    """The integer that names `layer` to `torch.ops.moerun.experts`, as long as someone keeps the layer."""
    handle = next(_new_handle)
    _layers[handle] = layer
    return handle


def _experts(
    x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor, layer_handle: int
) -> torch.Tensor:
    layer = _layers.get(layer_handle)
    if layer is None:
        raise RuntimeError(
            f"no layer of experts has the handle {layer_handle}: it was never registered in this process, or "
            "its engine is gone; keep the engine for as long as the operator is called"
        )
    return layer.forward(x, topk_ids, topk_weights)


def _experts_shape(
    x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor, layer_handle: int
) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _differentiate(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
    return torch.ops.moerun.experts_backward(gradient), None, None, None


def _experts_backward(gradient: torch.Tensor) -> torch.Tensor:
    raise NotImplementedError(
        "moerun runs experts for inference only and has no gradients; call the model under torch.no_grad(), "
        "or train with the experts in torch"
    )


# torch.library.custom_op would be shorter, but costs 4 us more a call than what is below.
_library = torch.library.Library("moerun", "DEF")
_library.define(
    "experts(Tensor x, Tensor topk_ids, Tensor topk_weights, SymInt layer_handle) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.impl("experts", _experts, "CompositeExplicitAutograd")
torch.library.register_fake("moerun::experts", _experts_shape, lib=_library)
torch.library.register_autograd("moerun::experts", _differentiate, lib=_library)
# An operator of its own: torch.compile traces the backward pass if parameters require gradients,
# and must not meet the error before that is run.
_library.define("experts_backward(Tensor gradient) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_library.impl("experts_backward", _experts_backward, "CompositeExplicitAutograd")
torch.library.register_fake("moerun::experts_backward", torch.empty_like, lib=_library)
