"""From options and a model to a run: the experts' modules and layers that a selection hooks into."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moerun.big_little.options import BigLittle
from moerun.big_little.selection import ExpertSelection
from moerun.routing import renormalizes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def selection_for(model: PreTrainedModel, options: BigLittle) -> ExpertSelection:
    """The selection of experts of a run, to be entered where the run begins.

    Raises
    ------
    TypeError
        The model was not loaded by moerun.hf.
    ValueError
        `options` do not fit the model, or its family's routing is unknown.
    """
    from moerun.hf.experts import experts_modules

    if not hasattr(model, "moerun_engine"):
        raise TypeError(
            f"big_little needs a model whose experts run in moerun's engine, got {type(model).__name__}; "
            "load it with moerun.hf.from_pretrained"
        )
    modules: dict[int, Any] = dict(sorted(experts_modules(model).items()))
    layers = {number: module.moerun_layer.value for number, module in modules.items()}
    top_k = next(iter(layers.values())).spec.top_k
    config = model.config.get_text_config().to_dict()
    return ExpertSelection(
        modules,
        layers,
        options.little_k_of_layers(len(modules), top_k),
        renormalizes(str(config["model_type"]), config),
    )
