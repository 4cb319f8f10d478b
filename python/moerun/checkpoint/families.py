"""The model families that moerun reads: one declarative entry each, and what the entries are made of.

To add a family, add an entry to FAMILIES: field and tensor names are those of its Hugging Face repositories.
A tiny config of it in tests/random_checkpoints.py puts it under the tests that all families pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from moerun.checkpoint.config import ModelConfig
from moerun.checkpoint.layout import Fused, Layout, PerExpert
from moerun.checkpoint.problem import problem, shown
from moerun.layer_spec import LayerSpec

# Far above any model. A damaged config must not make us count to 10^18.
_MAX_LAYERS = 10_000
_MAX_EXPERTS = 10_000

# transformers' names of activations -> ours.
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu2": "relu2",
}


def num_layers(config: ModelConfig) -> int:
    """Number of decoder layers, with and without experts."""
    return config.size("num_hidden_layers", at_most=_MAX_LAYERS)


def every_layer(config: ModelConfig) -> Iterator[int]:
    """All layers have experts."""
    return iter(range(num_layers(config)))


def every_nth_layer(config: ModelConfig) -> Iterator[int]:
    """Every decoder_sparse_step-th layer has experts, unless mlp_only_layers lists it."""
    step = 1 if config.fields.get("decoder_sparse_step") is None else config.size("decoder_sparse_step")
    dense = set(config.integers("mlp_only_layers"))
    return (layer for layer in range(num_layers(config)) if (layer + 1) % step == 0 and layer not in dense)


def after_dense_layers(config: ModelConfig) -> Iterator[int]:
    """All layers have experts except the first first_k_dense_replace."""
    return iter(range(config.count("first_k_dense_replace"), num_layers(config)))


def hidden_act(config: ModelConfig) -> dict[str, str | float]:
    """The activation that the config names."""
    name = config.fields.get("hidden_act", "silu")
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise problem(config.file, "field 'hidden_act'", f"one of {', '.join(_ACTIVATIONS)}", shown(name))
    return {"activation": _ACTIVATIONS[name]}


def clamped_swiglu(config: ModelConfig) -> dict[str, str | float]:
    """gpt-oss's activation, whose constants the config may set."""
    return {
        "activation": "swiglu_oai",
        "swiglu_alpha": config.number("swiglu_alpha", default=1.702),
        "swiglu_limit": config.number("swiglu_limit", default=7.0),
    }


@dataclass(frozen=True)
class Family:
    """What is particular to one family.

    Parameters
    ----------
    layouts
        The ways in which its experts are stored. Tensor names follow "model.layers.L.".
    num_experts
        Config fields of the number of experts; the first that is set counts.
    intermediate_size
        Config field of one expert's width.
    moe_layers
        Which layers have experts.
    activation
        The LayerSpec fields that describe the activation.
    """

    layouts: tuple[Layout, ...]
    num_experts: tuple[str, ...]
    intermediate_size: str = "moe_intermediate_size"
    moe_layers: Callable[[ModelConfig], Iterator[int]] = every_layer
    activation: Callable[[ModelConfig], dict[str, str | float]] = hidden_act

    @property
    def bias(self) -> bool:
        """Whether the experts carry biases."""
        return any(isinstance(layout, Fused) and layout.gate_up_bias is not None for layout in self.layouts)

    def layer_spec(self, config: ModelConfig) -> LayerSpec:
        """Reads the spec that all layers with experts share.

        Raises
        ------
        CheckpointError
            A field is missing or makes no sense.
        """
        num_experts = config.size(*self.num_experts, at_most=_MAX_EXPERTS)
        return LayerSpec(
            num_experts=num_experts,
            hidden_size=config.size("hidden_size"),
            intermediate_size=config.size(self.intermediate_size),
            top_k=config.size("num_experts_per_tok", at_most=num_experts),
            bias=self.bias,
            **self.activation(config),  # type: ignore[arg-type]
        )


# What transformers >= 5 holds in memory, and saves with save_original_format=False.
_FUSED = Fused("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
_MLP_EXPERTS = PerExpert(
    gate="mlp.experts.{expert}.gate_proj.weight",
    up="mlp.experts.{expert}.up_proj.weight",
    down="mlp.experts.{expert}.down_proj.weight",
)
_MIXTRAL_EXPERTS = PerExpert(
    gate="block_sparse_moe.experts.{expert}.w1.weight",
    up="block_sparse_moe.experts.{expert}.w3.weight",
    down="block_sparse_moe.experts.{expert}.w2.weight",
)
_GPT_OSS_EXPERTS = Fused(
    "mlp.experts.gate_up_proj",
    "mlp.experts.down_proj",
    gate_up_bias="mlp.experts.gate_up_proj_bias",
    down_bias="mlp.experts.down_proj_bias",
    transposed=True,
    interleaved=True,
)

_QWEN = Family(
    layouts=(_MLP_EXPERTS, _FUSED),
    num_experts=("num_experts", "num_local_experts"),
    moe_layers=every_nth_layer,
)
_DEEPSEEK = Family(
    layouts=(_MLP_EXPERTS, _FUSED), num_experts=("n_routed_experts",), moe_layers=after_dense_layers
)

FAMILIES: dict[str, Family] = {
    "qwen3_moe": _QWEN,
    "qwen2_moe": _QWEN,
    "olmoe": Family(
        layouts=(_MLP_EXPERTS, _FUSED),
        num_experts=("num_experts", "num_local_experts"),
        intermediate_size="intermediate_size",
    ),
    "mixtral": Family(
        layouts=(_MIXTRAL_EXPERTS, _FUSED),
        num_experts=("num_local_experts", "num_experts"),
        intermediate_size="intermediate_size",
    ),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "glm4_moe": _DEEPSEEK,
    "gpt_oss": Family(
        layouts=(_GPT_OSS_EXPERTS,),
        num_experts=("num_local_experts", "num_experts"),
        intermediate_size="intermediate_size",
        activation=clamped_swiglu,
    ),
}


def family_of(config: ModelConfig) -> tuple[str, Family]:
    """Looks up config.json's model_type.

    Raises
    ------
    CheckpointError
        A family that is not in FAMILIES; the message lists those that are.
    """
    name = config.fields.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise problem(config.file, "field 'model_type'", f"one of {', '.join(FAMILIES)}", shown(name))
    return name, FAMILIES[name]
