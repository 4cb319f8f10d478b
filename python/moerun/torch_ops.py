"""torch.ops.moerun: a layer of experts and a dense linear layer as operators that torch.compile keeps whole.

The adapters call them; the work is `Layer.forward` and `Linear.forward`. An operator's arguments are tensors
and numbers, so a layer is named by an integer that `register_layer` gives out. Layers are held weakly.
"""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from moerun.dense import Linear
    from moerun.engine import Layer

_layers: weakref.WeakValueDictionary[int, Layer] = weakref.WeakValueDictionary()
_linears: weakref.WeakValueDictionary[int, Linear] = weakref.WeakValueDictionary()
_new_handle = itertools.count(1)


def register_layer(layer: Layer) -> int:
    """The integer that names `layer` to `torch.ops.moerun.experts`, as long as someone keeps the layer."""
    handle = next(_new_handle)
    _layers[handle] = layer
    return handle


def register_linear(linear: Linear) -> int:
    """The integer that names `linear` to `torch.ops.moerun.linear`, as long as someone keeps it."""
    handle = next(_new_handle)
    _linears[handle] = linear
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


def _linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, linear_handle: int
) -> torch.Tensor:
    linear = _linears.get(linear_handle)
    kept = None if linear is None else linear.weight
    here = kept is not None and weight.data_ptr() == kept.data_ptr()
    if linear is None or not here or x.dtype != weight.dtype:
        return torch.nn.functional.linear(x, weight, bias)  # the module was copied, converted or moved since
    return linear.forward(x)


def _linear_shape(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, linear_handle: int
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _quantised_linear(x: torch.Tensor, outputs: int, linear_handle: int) -> torch.Tensor:
    linear = _linears.get(linear_handle)
    if linear is None:
        raise RuntimeError(
            f"no dense layer has the handle {linear_handle}: its engine is gone; keep the engine for as long "
            "as the operator is called"
        )
    return linear.forward(x)


def _quantised_linear_shape(x: torch.Tensor, outputs: int, linear_handle: int) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], outputs))


def _remember_inputs(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.inputs = inputs[1].shape[1]


def _differentiate_linear(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
    as_x = gradient.new_empty((*gradient.shape[:-1], ctx.inputs))  # experts_backward only looks at its shape
    return torch.ops.moerun.experts_backward(as_x), None, None, None


def _remember_width(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.inputs = inputs[0].shape[-1]


def _differentiate_quantised(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
    return _differentiate_linear(ctx, gradient)[0], None, None


def _experts_backward(gradient: torch.Tensor) -> torch.Tensor:
    raise NotImplementedError(
        "moerun runs models for inference only and has no gradients; call the model under torch.no_grad(), "
        "or train it in torch"
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
_library.define(
    "linear(Tensor x, Tensor weight, Tensor? bias, SymInt linear_handle) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.impl("linear", _linear, "CompositeExplicitAutograd")
torch.library.register_fake("moerun::linear", _linear_shape, lib=_library)
torch.library.register_autograd(
    "moerun::linear", _differentiate_linear, setup_context=_remember_inputs, lib=_library
)
_library.define(
    "quantised_linear(Tensor x, SymInt outputs, SymInt linear_handle) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.impl("quantised_linear", _quantised_linear, "CompositeExplicitAutograd")
torch.library.register_fake("moerun::quantised_linear", _quantised_linear_shape, lib=_library)
torch.library.register_autograd(
    "moerun::quantised_linear", _differentiate_quantised, setup_context=_remember_width, lib=_library
)
