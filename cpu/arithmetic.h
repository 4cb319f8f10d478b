// Which kernels of a row serve a batch, and what its activations become.
#pragma once
#include "cpu/kernel_table.h"

namespace moerun::cpu {

struct Arithmetic {
  const ExpertKernels* kernels;
  DType activations;
};

// Where the row multiplies bf16 pairs, bf16 stays bf16, and any x meets quantised weights as bf16: rounding x
// costs 2^-8, far below what those formats lose. Everything else becomes fp32.
inline Arithmetic arithmetic(const KernelTable& row, DType x, WeightFormat weights) {
  const int i = static_cast<int>(weights);
  const bool may_round = x == DType::bf16 || is_quantised(weights);
  if (may_round && row.bf16_activations[i].gate_up) return {&row.bf16_activations[i], DType::bf16};
  return {&row.f32_activations[i], DType::f32};
}

}  // namespace moerun::cpu
