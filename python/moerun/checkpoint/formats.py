"""Number formats of experts that are not quantised, and how numpy reads a tensor of any dtype it has."""

from __future__ import annotations

import numpy as np

# safetensors' name -> (ours, bytes per element)
PLAIN_DTYPES = {"BF16": ("bf16", 2), "F16": ("fp16", 2), "F32": ("fp32", 4)}
_NUMPY = {"U8": np.uint8, "I8": np.int8, "F8_E4M3": np.uint8, "I32": np.int32, "I64": np.int64}


def to_fp32(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Converts raw bytes, uint8 [n], of BF16, F16 or F32 elements into a new fp32 array."""
    if dtype == "BF16":  # the upper half of an fp32 number
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return raw.view({"F16": np.float16, "F32": np.float32}[dtype]).astype(np.float32)


def to_numpy(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Raw bytes, uint8 [n], as an array: floats as fp32, bytes and integers where they lie."""
    return to_fp32(raw, dtype) if dtype in PLAIN_DTYPES else raw.view(_NUMPY[dtype])
