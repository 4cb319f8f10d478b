// The AVX-512-VNNI row: the AVX-512 row, and int8 activations with int8 weights.
#include "cpu/avx512/simd.h"
#include "cpu/avx512_vnni/integers.h"
// after Simd and Integers
#include "cpu/kernels/int8_dot_inl.h"
#include "cpu/kernels/limits_inl.h"
#include "cpu/kernels/linear_inl.h"

namespace moerun::cpu {
namespace {

KernelTable make_table() {
  KernelTable table = avx512_kernels();
  table.isa = "avx512_vnni";
  const auto at = [&](WeightFormat f) -> ExpertKernels& {
    return table.bf16_activations[static_cast<int>(f)];
  };
  at(WeightFormat::int8) = expert_kernels<Int8Dot<WeightFormat::int8>>();
  at(WeightFormat::int8_g128) = expert_kernels<Int8Dot<WeightFormat::int8_g128>>();
  table.limits.dot[static_cast<int>(DotType::int8)] = dot_peak<Int8Dot<WeightFormat::int8>>;
  return table;
}

}  // namespace

const KernelTable& avx512_vnni_kernels() {
  static const KernelTable table = make_table();
  return table;
}

}  // namespace moerun::cpu
