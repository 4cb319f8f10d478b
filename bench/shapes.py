"""Layers of experts of well-known models, after their config.json. One layer of each is measured."""

from __future__ import annotations

from dataclasses import dataclass, replace

from moerun import QUANTISED, LayerSpec, _core

FLOATS = ("bf16", "fp16", "fp32")


@dataclass(frozen=True)
class Shape:
    """One model's layer of experts."""

    model: str
    num_experts: int
    top_k: int
    hidden_size: int
    intermediate_size: int
    activation: str = "silu"
    bias: bool = False

    @property
    def spec(self) -> LayerSpec:
        return LayerSpec(
            self.num_experts,
            self.hidden_size,
            self.intermediate_size,
            self.top_k,
            activation=self.activation,
            bias=self.bias,
        )

    def in_format(self, weight_format: str) -> LayerSpec:
        """`spec` with experts in this format; float formats are those of the tensors (workload.py)."""
        return replace(self.spec, quant=weight_format if weight_format in QUANTISED else None)

    def weight_bytes(self, weight_format: str) -> int:
        """Of all experts, with their scales."""
        kind = getattr(_core.WeightFormat, weight_format)
        return self.num_experts * _core.weight_bytes(kind, self.hidden_size, self.intermediate_size)

    def operations(self, tokens: int) -> float:
        """Multiplications and additions of the three matrix products, for `tokens` tokens."""
        return 2.0 * 3 * self.hidden_size * self.intermediate_size * self.top_k * tokens


SHAPES = {
    "qwen3-30b": Shape("Qwen3-30B-A3B", 128, 8, 2048, 768),
    "olmoe": Shape("OLMoE-1B-7B", 64, 8, 2048, 1024),
    "deepseek-v2-lite": Shape("DeepSeek-V2-Lite", 64, 6, 2048, 1408),
    "gpt-oss-20b": Shape("gpt-oss-20b", 32, 4, 2880, 2880, activation="swiglu_oai", bias=True),
    "mixtral": Shape("Mixtral-8x7B", 8, 2, 4096, 14336),
}
# For figures that do not depend on the model: small enough to hold in every format, larger than caches.
EXAMPLE = Shape("32 experts of Qwen3", 32, 8, 2048, 768)
