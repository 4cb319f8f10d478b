"""One layer of experts in kt-kernel, run by a Python that has it; kt_kernel_layer.py starts and drives it.

Requests and answers are lines of JSON on standard input and output; tensors travel in files. Needs torch and
kt-kernel and nothing of this project, so that kt-kernel's environment can be its own. Layers are made from
kt-kernel's classes and not from its KTMoEWrapper, which needs pinned memory and so a GPU.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import kt_kernel
import torch

# Its classes for each of our formats, the one that its own wrappers prefer first.
CLASSES = {
    "bf16": ("AMXBF16_MOE", "AVX2BF16_MOE"),
    "int8": ("AMXInt8_MOE",),
    "int4_g32": ("AMXInt4_KGroup_MOE", "AVX2RawInt4_MOE"),
    "fp8_b128": ("AMXFP8_MOE", "AVX2FP8_MOE"),
    "mxfp4": ("AMXFP4_KGroup_MOE", "AVX2MXFP4_MOE"),
}
GROUP = 32  # of int4_g32 and mxfp4
BLOCK = 128  # of fp8_b128
MAX_TOKENS = 4096  # of a step
E2M1_LIMITS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)  # between the magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6


class Worker:
    """Holds one layer and the steps to run on it."""

    def __init__(self, threads: int) -> None:
        pool = kt_kernel.kt_kernel_ext.WorkerPoolConfig()
        pool.subpool_count = 1
        pool.subpool_numa_map = [0]
        pool.subpool_thread_count = [threads]
        self.cpu = kt_kernel.kt_kernel_ext.CPUInfer(pool)
        self.layer: Any = None
        self.keep: list[Any] = []  # what the layer points to
        self.steps: list[tuple[torch.Tensor, ...]] = []

    def load(self, weight_format: str, shape: dict[str, int], gate_up: str, down: str) -> str:
        """A layer with the bf16 weights of two files, in a format; returns the name of its class."""
        experts, hidden, inter = shape["num_experts"], shape["hidden_size"], shape["intermediate_size"]
        gate, up = _read(gate_up, (experts, 2, inter, hidden)).unbind(1)
        weights = {"gate": gate, "up": up, "down": _read(down, (experts, hidden, inter))}
        on_gpu = torch.zeros(experts, dtype=torch.bool)
        order = torch.arange(experts)
        moe = kt_kernel.kt_kernel_ext.moe
        config = moe.MOEConfig(experts, shape["top_k"], hidden, inter, on_gpu.data_ptr())
        config.pool = self.cpu.backend_
        config.max_len = MAX_TOKENS
        self.keep = [on_gpu, order]
        if weight_format == "int8":  # it quantises by itself
            for name, weight in weights.items():
                setattr(config, f"{name}_proj", self._address(weight))
        else:
            self._point(config, weight_format, weights)
        name = next(name for name in CLASSES[weight_format] if hasattr(moe, name))
        self.layer = getattr(moe, name)(config)
        self.cpu.submit(self.layer.load_weights_task(order.data_ptr()))
        self.cpu.sync()
        self.keep = [on_gpu]  # it has copied the rest
        return name

    def _point(self, config: Any, weight_format: str, weights: dict[str, torch.Tensor]) -> None:
        quant = config.quant_config
        quant.bits = {"bf16": 16, "fp8_b128": 8}.get(weight_format, 4)
        quant.group_size = BLOCK if weight_format == "fp8_b128" else GROUP
        quant.zero_point = False
        for name, weight in weights.items():
            codes, scales = zip(*(QUANTISE[weight_format](matrix) for matrix in weight), strict=True)
            setattr(config, f"{name}_projs", [[self._address(code) for code in codes]])
            addresses = [0 if scale is None else self._address(scale) for scale in scales]
            setattr(config, f"{name}_scales", [addresses])

    def _address(self, tensor: torch.Tensor) -> int:
        self.keep.append(tensor.contiguous())
        return self.keep[-1].data_ptr()

    def batches(self, files: list[dict[str, str]], tokens: int, hidden: int, top_k: int) -> None:
        """The steps that `run` runs: of each, the files of x, ids and weights."""
        self.steps = [
            (
                torch.tensor([tokens], dtype=torch.int32),
                _read(step["ids"], (tokens, top_k), torch.int64),
                _read(step["weights"], (tokens, top_k), torch.float32),
                _read(step["x"], (tokens, hidden)),
                torch.empty(tokens, hidden, dtype=torch.bfloat16),
            )
            for step in files
        ]

    def run(self, steps: list[int]) -> float:
        """Seconds that these steps took together."""
        begin = time.perf_counter()
        for step in steps:
            tokens, ids, weights, x, y = self.steps[step]
            addresses = (ids.data_ptr(), weights.data_ptr(), x.data_ptr(), y.data_ptr())
            task = self.layer.forward_task(tokens.data_ptr(), ids.shape[1], *addresses, False)
            self.cpu.submit(task)
            self.cpu.sync()
        return time.perf_counter() - begin

    def output(self, step: int, file: str) -> None:
        """Writes what this step returned when it last ran, bf16."""
        self.steps[step][4].view(torch.uint16).numpy().tofile(file)


def bf16(w: torch.Tensor) -> tuple[torch.Tensor, None]:
    return w, None


def int4_g32(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric: value + 8 in nibbles, the even one low; bf16 scales [N, K / 32]."""
    groups = w.float().unflatten(1, (-1, GROUP))
    scale = (groups.abs().amax(2, keepdim=True) / 7).clamp_min(1e-8).bfloat16().float()
    codes = (groups / scale).round().clamp(-8, 7) + 8
    return _nibbles(codes), scale.squeeze(2).bfloat16()


def fp8_b128(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """e4m3, fp32 scales [N / 128, K / 128] to multiply with."""
    rows, columns = (-(-size // BLOCK) for size in w.shape)
    padded = torch.zeros(rows * BLOCK, columns * BLOCK)
    padded[: w.shape[0], : w.shape[1]] = w
    scale = padded.view(rows, BLOCK, columns, BLOCK).abs().amax((1, 3)).clamp_min(1e-8) / 448
    spread = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[: w.shape[0], : w.shape[1]]
    return (w.float() / spread).to(torch.float8_e4m3fn).view(torch.uint8), scale


def mxfp4(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """e2m1 in nibbles, the even one low; scales that are powers of two, as bf16 [N, K / 32]."""
    groups = w.float().unflatten(1, (-1, GROUP))
    scale = torch.exp2(groups.abs().amax(2, keepdim=True).clamp_min(1e-8).log2().floor() - 2)
    magnitude = torch.bucketize((groups / scale).abs(), torch.tensor(E2M1_LIMITS))
    return _nibbles(magnitude + 8 * (groups < 0)), scale.squeeze(2).bfloat16()


QUANTISE = {"bf16": bf16, "int4_g32": int4_g32, "fp8_b128": fp8_b128, "mxfp4": mxfp4}


def _nibbles(codes: torch.Tensor) -> torch.Tensor:
    codes = codes.flatten(1).to(torch.uint8)
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def _read(file: str, shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    size = 1
    for extent in shape:
        size *= extent
    return torch.from_file(file, shared=False, size=size, dtype=dtype).view(shape)


def main() -> None:
    # kt-kernel prints to standard output; the answers keep it to themselves.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker = Worker(threads=int(sys.argv[1]))
    print(json.dumps(getattr(kt_kernel, "__version__", "unknown")), file=answers)
    for line in sys.stdin:
        verb, arguments = json.loads(line)
        print(json.dumps(getattr(worker, verb)(**arguments)), file=answers)


if __name__ == "__main__":
    main()
