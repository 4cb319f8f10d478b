"""Tiny random models of every family, built and saved by transformers itself.

The reader's and the adapter's tests use them: whatever transformers writes is what people download, and the
model that is returned holds the same numbers as the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    Glm4MoeConfig,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# No two sizes are equal where a mix-up could hide, and none is a multiple of every block in the kernels.
_COMMON: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_DEEPSEEK_ATTENTION: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
_GROUPED_SIGMOID_ROUTER: dict[str, Any] = {
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 3,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "first_k_dense_replace": 1,
    "num_hidden_layers": 3,
    "moe_intermediate_size": 48,
    "intermediate_size": 96,
}

FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "qwen3_moe": (
        Qwen3MoeConfig,
        {
            "num_hidden_layers": 2,
            "head_dim": 16,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "moe_intermediate_size": 48,
            "intermediate_size": 96,
        },
    ),
    "qwen2_moe": (
        Qwen2MoeConfig,
        {
            "num_hidden_layers": 2,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 80,
            "intermediate_size": 96,
        },
    ),
    "olmoe": (
        OlmoeConfig,
        {"num_hidden_layers": 2, "num_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 48},
    ),
    "mixtral": (
        MixtralConfig,
        {"num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48},
    ),
    "deepseek_v2": (
        DeepseekV2Config,
        {
            **_DEEPSEEK_ATTENTION,
            "num_hidden_layers": 3,
            "first_k_dense_replace": 1,
            "n_routed_experts": 8,
            "n_shared_experts": 2,
            "num_experts_per_tok": 3,
            "n_group": 4,
            "topk_group": 2,
            "topk_method": "group_limited_greedy",
            "routed_scaling_factor": 1.5,
            "moe_intermediate_size": 48,
            "intermediate_size": 96,
        },
    ),
    "deepseek_v3": (DeepseekV3Config, {**_DEEPSEEK_ATTENTION, **_GROUPED_SIGMOID_ROUTER}),
    "glm4_moe": (Glm4MoeConfig, {**_GROUPED_SIGMOID_ROUTER, "head_dim": 16}),
    "gpt_oss": (
        GptOssConfig,
        {
            "num_hidden_layers": 2,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "intermediate_size": 48,
            "head_dim": 16,
            "sliding_window": 16,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150000.0,
                "factor": 2.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 256,
            },
        },
    ),
}


def save_random_checkpoint(
    family: str,
    folder: str | Path,
    dtype: str = "fp32",
    seed: int = 0,
    fused: bool = False,
    max_shard_size: str | int = "5GB",
    **config_overrides: Any,
) -> PreTrainedModel:
    """Saves a random model of `family` into `folder` and returns it, in eval mode, with the saved numbers.

    `dtype` is "fp32", "fp16" or "bf16". With `fused`, the experts of a layer are saved as transformers 5
    holds them in memory (one 3-D tensor for gate and up, one for down); otherwise under the family's
    published names. `config_overrides` go to the config class on top of FAMILIES.
    """
    config_class, family_fields = FAMILIES[family]
    config = config_class(**{**_COMMON, **family_fields, **config_overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype]).eval()
        _perturb_constants(model)
    model.save_pretrained(folder, max_shard_size=max_shard_size, save_original_format=not fused)
    return model


def _perturb_constants(model: PreTrainedModel) -> None:
    """Adds noise to what starts as ones or zeros (norms, biases, corrections), so that a lost one shows."""
    vectors = [p for name, p in model.named_parameters() if p.dim() == 1 or name.endswith("bias")]
    vectors += [b for name, b in model.named_buffers() if name.endswith("e_score_correction_bias")]
    with torch.no_grad():
        for vector in vectors:
            vector.add_(torch.randn(vector.shape).mul_(0.1).to(vector.dtype))
