// The AVX-512-BF16 row: the AVX-512 row, and bf16 activations with bf16 and quantised weights.
#include "cpu/avx512/simd.h"
#include "cpu/avx512_bf16/bf16_dot.h"
#include "cpu/avx512_bf16/int8_dot.h"
#include "cpu/avx512_bf16/quantised_dots.h"
// after Simd
#include "cpu/kernels/f32_dot_inl.h"
#include "cpu/kernels/limits_inl.h"
#include "cpu/kernels/linear_inl.h"

namespace moerun::cpu {
namespace {

KernelTable make_table() {
  KernelTable table = avx512_kernels();
  table.isa = "avx512_bf16";
  const auto at = [&](WeightFormat f) -> ExpertKernels& {
    return table.bf16_activations[static_cast<int>(f)];
  };
  at(WeightFormat::bf16) = expert_kernels<Bf16Dot>();
  at(WeightFormat::int8) = expert_kernels<Int8Dot<WeightFormat::int8>>();
  at(WeightFormat::int8_g128) = expert_kernels<Int8Dot<WeightFormat::int8_g128>>();
  at(WeightFormat::int4_g32) = expert_kernels<CodedDot<WeightFormat::int4_g32>>();
  at(WeightFormat::int4_g64) = expert_kernels<CodedDot<WeightFormat::int4_g64>>();
  at(WeightFormat::int4_g128) = expert_kernels<CodedDot<WeightFormat::int4_g128>>();
  at(WeightFormat::int4z_g32) = expert_kernels<CodedDot<WeightFormat::int4z_g32>>();
  at(WeightFormat::int4z_g64) = expert_kernels<CodedDot<WeightFormat::int4z_g64>>();
  at(WeightFormat::int4z_g128) = expert_kernels<CodedDot<WeightFormat::int4z_g128>>();
  at(WeightFormat::fp8_b128) = expert_kernels<CodedDot<WeightFormat::fp8_b128>>();
  at(WeightFormat::mxfp4) = expert_kernels<CodedDot<WeightFormat::mxfp4>>();
  table.limits.dot[static_cast<int>(DotType::bf16)] = dot_peak<Bf16Dot>;
  table.limits.dot[static_cast<int>(DotType::int8)] = dot_peak<Int8Dot<WeightFormat::int8>>;
  return table;
}

}  // namespace

const KernelTable& avx512_bf16_kernels() {
  static const KernelTable table = make_table();
  return table;
}

}  // namespace moerun::cpu
