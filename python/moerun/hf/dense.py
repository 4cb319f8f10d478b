"""What stands around the experts of a transformers model, on the engine's threads and kernels.

Around the experts a decode step is matrix-vector products again (attention projections, shared experts, the
head over the vocabulary), which torch does two to four times slower than memory allows, and dozens of small
operations that take longer to call than to do. A module that is taken keeps its place, its parameters and
its hooks; it goes back to transformers' own code where it was copied, converted or moved since, while
gradients are tracked, and under torch.compile (which keeps the operators of torch_ops).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from moerun.hf.held import Held
from moerun.hf.original import Original
from moerun.torch_ops import register_linear

if TYPE_CHECKING:
    from moerun.dense import Linear
    from moerun.engine import Engine

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_HEAD = "lm_head"
_READ_BY_COLUMNS = "kv_b_proj"  # too, in multi-head latent attention: never quantised
_HEAD_FORMATS = {4: "int8_g128"}  # bits of the other matrices -> format of the head


class EngineLinear(torch.nn.Linear):
    """torch.nn.Linear that runs in an engine as long as its weight stays where, and its bias what it was."""

    moerun_linear: Held[Linear]
    moerun_bias: Original | None  # the engine has a copy of it

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling() and not self.has_its_bias():
            return super().forward(input)
        return torch.ops.moerun.linear(input, self.weight, self.bias, self.moerun_linear.handle)

    def has_its_bias(self) -> bool:
        return self.bias is None if self.moerun_bias is None else self.moerun_bias.is_still(self.bias)


class QuantisedLinear(torch.nn.Module):
    """A dense layer whose quantised weight lives in an engine; torch has none of it."""

    moerun_linear: Held[Linear]

    def __init__(self, linear: Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.inputs, linear.outputs
        self.dtype = dtype
        self.moerun_linear = Held(linear, register_linear(linear))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.ops.moerun.quantised_linear(input, self.out_features, self.moerun_linear.handle)

    def extra_repr(self) -> str:
        linear = self.moerun_linear.value
        return f"in_features={linear.inputs}, out_features={linear.outputs}, format={linear.format}"


def attach_linears(model: torch.nn.Module, engine: Engine, quant: str | None = None) -> int:
    """Gives every plain torch.nn.Linear of `model` in host memory to the engine; returns how many.

    With `quant` their weights are quantised to that format, and let go in torch. The head over the vocabulary
    keeps at least 8 bits, and its own format if it shares its weight with the embedding; so does what makes
    keys and values of latents.
    """
    tied = {m.weight.data_ptr() for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    count = 0
    for name, module in list(model.named_modules()):
        if type(module) is not torch.nn.Linear:
            continue
        weight = module.weight.detach()
        if weight.device.type != "cpu" or weight.dtype not in _FLOATS:
            continue
        bias = None if module.bias is None else module.bias.detach()
        count += 1
        if quant is not None and weight.data_ptr() not in tied and not name.endswith(_READ_BY_COLUMNS):
            linear = engine.add_linear(weight, bias, _format_of(name, quant))
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, QuantisedLinear(linear, weight.dtype))
            continue
        linear = engine.add_linear(weight, bias)
        module.__class__ = EngineLinear
        module.moerun_bias = None if bias is None else Original(module.bias)  # type: ignore[assignment]
        module.moerun_linear = Held(linear, register_linear(linear))  # type: ignore[assignment]
    return count


def _format_of(name: str, quant: str) -> str:
    from moerun.layer_spec import bits_of

    return _HEAD_FORMATS.get(bits_of(quant), quant) if name == _HEAD else quant


def modules_of(model: torch.nn.Module) -> Iterator[Any]:
    """All modules of a model, whose attributes differ from family to family."""
    return model.modules()


def is_watched(module: Any) -> bool:
    """Whether calling a module does more than its class says: hooks, or a forward of its own."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def linear_of(module: Any) -> Linear | None:
    """The engine's linear of a module, if calling the module would do nothing else than run it."""
    if is_watched(module):
        return None
    kind = type(module)
    if kind is QuantisedLinear:
        return module.moerun_linear.value
    if kind is not EngineLinear:
        return None
    linear = module.moerun_linear.value
    here = module.weight.data_ptr() == linear.weight.data_ptr() and module.has_its_bias()
    return linear if here else None


def may_skip_torch(x: torch.Tensor) -> bool:
    """Whether a module may compute from `x` without torch: for inference on the CPU, and not while traced."""
    return (
        x.device.type == "cpu"
        and x.dtype in _FLOATS
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def mix_in(mixin: Any, module: Any) -> None:
    """Gives a module the mixin's forward; its own is the mixin's super()'s."""
    cls = type(module)
    name = f"Engine{cls.__name__}"
    if name not in globals():  # where pickle looks for it; what it holds cannot be pickled, and says so
        globals()[name] = type(name, (mixin, cls), {"__module__": __name__})
    module.__class__ = globals()[name]
