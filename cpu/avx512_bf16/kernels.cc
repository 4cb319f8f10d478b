// The AVX-512-BF16 row: the AVX-512-VNNI row, and bf16 activations with bf16, 4-bit and fp8 weights.
#include "cpu/avx512/simd.h"
#include "cpu/avx512_bf16/bf16_dot.h"
#include "cpu/avx512_bf16/quantised_dots.h"
// after Simd
#include "cpu/kernels/f32_dot_inl.h"
#include "cpu/kernels/limits_inl.h"
#include "cpu/kernels/linear_inl.h"
#include "cpu/kernels/prompt_attention_inl.h"

namespace moerun::cpu {
namespace {

void attend_prompt_in_bf16(const PromptArgs& a) {
  if (a.type != DType::bf16) return avx512_kernels().dense.attend_prompt(a);
  attend_prompt_of<Bf16Dot>(a);
}

KernelTable make_table() {
  KernelTable table = avx512_vnni_kernels();
  table.isa = "avx512_bf16";
  table.dense.attend_prompt = attend_prompt_in_bf16;
  const auto at = [&](WeightFormat f) -> ExpertKernels& {
    return table.bf16_activations[static_cast<int>(f)];
  };
  at(WeightFormat::bf16) = expert_kernels<Bf16Dot>();
  at(WeightFormat::int4_g32) = expert_kernels<CodedDot<WeightFormat::int4_g32>>();
  at(WeightFormat::int4_g64) = expert_kernels<CodedDot<WeightFormat::int4_g64>>();
  at(WeightFormat::int4_g128) = expert_kernels<CodedDot<WeightFormat::int4_g128>>();
  at(WeightFormat::int4z_g32) = expert_kernels<CodedDot<WeightFormat::int4z_g32>>();
  at(WeightFormat::int4z_g64) = expert_kernels<CodedDot<WeightFormat::int4z_g64>>();
  at(WeightFormat::int4z_g128) = expert_kernels<CodedDot<WeightFormat::int4z_g128>>();
  at(WeightFormat::fp8_b128) = expert_kernels<CodedDot<WeightFormat::fp8_b128>>();
  at(WeightFormat::mxfp4) = expert_kernels<CodedDot<WeightFormat::mxfp4>>();
  table.limits.dot[static_cast<int>(DotType::bf16)] = dot_peak<Bf16Dot>;
  return table;
}

}  // namespace

const KernelTable& avx512_bf16_kernels() {
  static const KernelTable table = make_table();
  return table;
}

}  // namespace moerun::cpu
