"""Shapes of the models that the replay prices. Sources: their config.json on the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """What decides the time of one layer.

    ``attention_params`` counts the weights of a layer outside of the experts (projections, router, norms);
    ``shared_intermediate`` is the width of all shared experts together. Layers without experts are left out.
    """

    name: str
    num_layers: int
    num_experts: int
    top_k: int
    hidden: int
    intermediate: int
    shared_intermediate: int
    attention_params: int

    @property
    def expert_params(self) -> int:
        return 3 * self.hidden * self.intermediate

    @property
    def shared_params(self) -> int:
        return 3 * self.hidden * self.shared_intermediate


MODELS = {
    shape.name: shape
    for shape in (
        # 32 heads of 128, 8 key-value heads
        ModelShape("Mixtral-8x7B", 32, 8, 2, 4096, 14336, 0, 4096 * (2 * 4096 + 2 * 1024)),
        # MLA: q 2048 x 3072, kv_a 2048 x 576, kv_b 512 x 4096, o 2048 x 2048; the first of 27 layers is dense
        ModelShape(
            "DeepSeek-V2-Lite", 26, 64, 6, 2048, 1408, 2 * 1408, 2048 * (3072 + 576 + 2048) + 512 * 4096
        ),
        # 28 heads of 128, 4 key-value heads
        ModelShape("Qwen2-57B-A14B", 28, 64, 8, 3584, 2560, 20480, 3584 * (2 * 3584 + 2 * 512)),
        # 32 heads of 128, 4 key-value heads
        ModelShape("Qwen3-30B-A3B", 48, 128, 8, 2048, 768, 0, 2048 * (2 * 4096 + 2 * 512)),
        # 16 heads of 128, 16 key-value heads
        ModelShape("OLMoE", 16, 64, 8, 2048, 1024, 0, 2048 * 4 * 2048),
        # 16 heads of 128, 16 key-value heads; a shared expert of 5632
        ModelShape("Qwen1.5-MoE-A2.7B", 24, 60, 4, 2048, 1408, 5632, 2048 * 4 * 2048),
        # examples/pycode-moe, the demo checkpoint
        ModelShape("pycode-moe", 6, 32, 4, 256, 64, 0, 256 * (2 * 256 + 2 * 128)),
    )
}
