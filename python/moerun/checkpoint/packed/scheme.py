"""Chooses the reader by config.json's quantization_config, and refuses by name what has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moerun.checkpoint.config import ModelConfig
from moerun.checkpoint.packed.block_fp8 import BlockFp8
from moerun.checkpoint.packed.int4 import Awq, Gptq, PackQuantized
from moerun.checkpoint.packed.mxfp4 import Mxfp4
from moerun.checkpoint.packed.parts import Scheme
from moerun.checkpoint.problem import problem, shown

_GROUPS = (32, 64, 128)
_READABLE = (
    "experts in bf16, fp16 or fp32, in fp8 with 128 x 128 block scales, MXFP4, compressed-tensors "
    "pack-quantized with 4 bits, GPTQ (symmetric, no act-order) or AWQ (GEMM)"
)
_UNQUANTISED = "Use the repository that this checkpoint was quantised from, and quantise when loading"


class _Refused(Exception):
    """Says what was found that has no reader."""


def packed_scheme(config: ModelConfig) -> Scheme | None:
    """Returns how the experts are packed; None if config.json says that they are not.

    Raises
    ------
    CheckpointError
        A way of quantising that has no reader; the message names it and what works.
    """
    quantization = config.fields.get("quantization_config")
    if quantization is None:
        return None
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    try:
        reader = _READERS.get(method) if isinstance(method, str) else None
        if reader is None or not isinstance(quantization, dict):
            raise _Refused(f"experts quantised as {shown(method)}")
        return reader(quantization)
    except _Refused as error:
        where = "field 'quantization_config'"
        raise problem(config.file, where, _READABLE, str(error), _UNQUANTISED) from error


def _expect(fields: dict[str, Any], method: str, name: str, *allowed: Any) -> Any:
    value = fields.get(name)
    if not any(type(value) is type(one) and value == one for one in allowed):
        raise _Refused(f"{method} with {name} {shown(value)}")
    return value


def _fp8(fields: dict[str, Any]) -> Scheme:
    _expect(fields, "fp8", "weight_block_size", [128, 128])
    _expect(fields, "fp8", "fmt", "e4m3", None)
    return BlockFp8()


def _mxfp4(fields: dict[str, Any]) -> Scheme:
    return Mxfp4()


def _gptq(fields: dict[str, Any]) -> Scheme:
    _expect(fields, "GPTQ", "bits", 4)
    _expect(fields, "GPTQ", "desc_act", False)
    _expect(fields, "GPTQ", "sym", True)
    version = _expect(fields, "GPTQ", "checkpoint_format", "gptq", "gptq_v2", None)
    return Gptq(_expect(fields, "GPTQ", "group_size", *_GROUPS), stored_zero=8 if version == "gptq_v2" else 7)


def _awq(fields: dict[str, Any]) -> Scheme:
    _expect(fields, "AWQ", "bits", 4)
    _expect(fields, "AWQ", "zero_point", True)
    _expect(fields, "AWQ", "version", "gemm", "GEMM")
    return Awq(_expect(fields, "AWQ", "group_size", *_GROUPS))


def _compressed_tensors(fields: dict[str, Any]) -> Scheme:
    method = "compressed-tensors"
    _expect(fields, method, "format", "pack-quantized")
    groups = fields.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise _Refused(f"{method} with other than one group in config_groups")
    (group,) = groups.values()
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise _Refused(f"{method} without 'weights' in its group")
    _expect(weights, method, "num_bits", 4)
    _expect(weights, method, "type", "int")
    _expect(weights, method, "strategy", "group")
    # "weight" and "static" reorder while quantising only; "group" stores an order that kernels must follow.
    _expect(weights, method, "actorder", None, "weight", "static", False)
    symmetric = _expect(weights, method, "symmetric", True, False)
    return PackQuantized(_expect(weights, method, "group_size", *_GROUPS), zeros=not symmetric)


_READERS: dict[str, Callable[[dict[str, Any]], Scheme]] = {
    "fp8": _fp8,
    "mxfp4": _mxfp4,
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed_tensors,
}
