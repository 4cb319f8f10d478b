// The AVX-512-BF16 row: the AVX-512 row, and bf16 activations with bf16 weights.
#include "cpu/avx512/simd.h"
#include "cpu/avx512_bf16/bf16_dot.h"
// after Simd
#include "cpu/kernels/f32_dot_inl.h"
#include "cpu/kernels/limits_inl.h"
#include "cpu/kernels/linear_inl.h"

namespace moerun::cpu {
namespace {

double dot(DType type, int64_t rounds, float* sink) {
  return type == DType::bf16 ? dot_peak<Bf16Dot>(rounds, sink) : dot_peak<F32Dot<DType::f32>>(rounds, sink);
}

KernelTable make_table() {
  KernelTable table = avx512_kernels();
  table.isa = "avx512_bf16";
  table.bf16_activations = true;
  table.bf16_bf16 = expert_kernels<Bf16Dot>();
  table.limits.dot = dot;
  return table;
}

}  // namespace

const KernelTable& avx512_bf16_kernels() {
  static const KernelTable table = make_table();
  return table;
}

}  // namespace moerun::cpu
