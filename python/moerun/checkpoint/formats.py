"""Number formats of experts in checkpoints: which tensors' dtypes the engine reads in place, and which
methods of quantisation it refuses by name. A format that gets a reader leaves the table of refusals.
"""

from __future__ import annotations

import numpy as np

from moerun.checkpoint.config import ModelConfig
from moerun.checkpoint.problem import problem, shown

# safetensors' name -> (ours, bytes per element)
PLAIN_DTYPES = {"BF16": ("bf16", 2), "F16": ("fp16", 2), "F32": ("fp32", 4)}

_DEQUANTISE = (
    "Save one with transformers: from_pretrained(PATH, quantization_config={config}(dequantize=True)), "
    "then save_pretrained(NEW_PATH)"
)
_UNQUANTISED = "Use the repository that this checkpoint was quantised from"

# quantization_config.quant_method -> (its name, how to get something that works)
_UNSUPPORTED = {
    "mxfp4": ("MXFP4", _DEQUANTISE.format(config="Mxfp4Config")),
    "fp8": ("fp8 with block scales", _DEQUANTISE.format(config="FineGrainedFP8Config")),
    "gptq": ("GPTQ", _UNQUANTISED),
    "awq": ("AWQ", _UNQUANTISED),
    "compressed-tensors": ("compressed-tensors", _UNQUANTISED),
    "bitsandbytes": ("bitsandbytes", _UNQUANTISED),
}


def refuse_quantised(config: ModelConfig) -> None:
    """Raises CheckpointError, with what works instead, if config.json says that the weights are quantised."""
    quantization = config.fields.get("quantization_config")
    if quantization is None:
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    name, fix = shown(method), _UNQUANTISED
    if isinstance(method, str) and method in _UNSUPPORTED:
        name, fix = _UNSUPPORTED[method]
    raise problem(
        config.file,
        "field 'quantization_config'",
        "no quantisation: bf16, fp16 and fp32 experts are supported",
        f"experts quantised as {name}",
        fix,
    )


def to_fp32(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Converts raw bytes, uint8 [n], of BF16, F16 or F32 elements into a new fp32 array."""
    if dtype == "BF16":  # the upper half of an fp32 number
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return raw.view({"F16": np.float16, "F32": np.float32}[dtype]).astype(np.float32)
