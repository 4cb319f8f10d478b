// int8 activations with int8 weights, for a row that has integer dot products: what it changes in the row
// that it extends. Included after a Simd and an Integers.
#pragma once
#include "cpu/kernel_table.h"
#include "cpu/kernels/int8_dot_inl.h"
#include "cpu/kernels/limits_inl.h"
#include "cpu/kernels/linear_inl.h"

namespace moerun::cpu {
namespace {

inline void fill_int8_kernels(KernelTable& table) {
  const auto at = [&](WeightFormat f) -> ExpertKernels& {
    return table.bf16_activations[static_cast<int>(f)];
  };
  at(WeightFormat::int8) = expert_kernels<Int8Dot<WeightFormat::int8>>();
  at(WeightFormat::int8_g128) = expert_kernels<Int8Dot<WeightFormat::int8_g128>>();
  table.limits.dot[static_cast<int>(DotType::int8)] = dot_peak<Int8Dot<WeightFormat::int8>>;
}

}  // namespace
}  // namespace moerun::cpu
