"""The "moerun" quantizer: takes the experts' parameters out of a model before transformers loads its weights.

A quantizer is transformers' hook between building a model on the meta device and reading the checkpoint. Ours
quantises nothing; it makes sure that torch never allocates nor reads an expert.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils import logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from moerun.errors import CheckpointError
from moerun.hf.experts import IMPLEMENTATION, experts_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.get_logger(__name__)


@register_quantization_config(IMPLEMENTATION)
class MoerunConfig(QuantizationConfigMixin):
    """Says which layers of the checkpoint have experts. Plain values: transformers copies and prints it."""

    def __init__(self, moe_layers: list[int], **_: Any) -> None:
        self.quant_method = IMPLEMENTATION  # type: ignore[assignment]
        self.moe_layers = moe_layers


@register_quantizer(IMPLEMENTATION)
class MoerunQuantizer(HfQuantizer):
    """Empties the experts modules; `moerun.hf.experts.attach_layers` fills them afterwards."""

    requires_calibration = False
    quantization_config: MoerunConfig

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        modules = experts_modules(model)
        expected = self.quantization_config.moe_layers
        if sorted(modules) != expected:
            raise CheckpointError(
                f"{type(model).__name__} lets moerun run experts in the layers {sorted(modules)}, but the "
                f"checkpoint has experts in {expected}; leave the config's layers as they are and use "
                "transformers' own model class (no trust_remote_code)"
            )
        for module in modules.values():
            module._parameters.clear()
            # Nothing is left to initialise, and _init_weights would look for it.
            module._is_hf_initialized = True  # type: ignore[assignment]
        _ignore_unexpected(model, r"\.experts\.")

    def is_serializable(self) -> bool:
        logger.warning(
            "The experts of this model live in moerun's engine: save_pretrained would write a model without "
            "them. Copy the folder that it was loaded from, or save a model loaded by transformers alone."
        )
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def _ignore_unexpected(model: PreTrainedModel, pattern: str) -> None:
    """Keeps transformers from reporting checkpoint tensors whose names match `pattern` as unexpected."""
    ignored = model._keys_to_ignore_on_load_unexpected  # None or a list up to 5.7, a set later
    if isinstance(ignored, set):
        model._keys_to_ignore_on_load_unexpected = ignored | {pattern}
    else:
        model._keys_to_ignore_on_load_unexpected = [*(ignored or ()), pattern]
