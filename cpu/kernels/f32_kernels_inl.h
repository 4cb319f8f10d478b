// The kernels for fp32 activations with weights of every format, for the rows of the table that have a Simd
// and Codes.
#pragma once
#include <utility>

#include "cpu/kernel_table.h"
#include "cpu/kernels/coded_f32_dot_inl.h"
#include "cpu/kernels/f32_dot_inl.h"
#include "cpu/kernels/linear_inl.h"

namespace moerun::cpu {
namespace {

template <WeightFormat W>
constexpr ExpertKernels f32_kernels() {
  if constexpr (is_quantised(W))
    return expert_kernels<CodedF32Dot<W>>();
  else
    return expert_kernels<F32Dot<static_cast<DType>(W)>>();
}

template <int... Formats>
constexpr void fill_f32_kernels(ExpertKernels (&to)[kWeightFormats], std::integer_sequence<int, Formats...>) {
  ((to[Formats] = f32_kernels<static_cast<WeightFormat>(Formats)>()), ...);
}

constexpr void fill_f32_kernels(ExpertKernels (&to)[kWeightFormats]) {
  fill_f32_kernels(to, std::make_integer_sequence<int, kWeightFormats>());
}

}  // namespace
}  // namespace moerun::cpu
