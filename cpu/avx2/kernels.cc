// The AVX2 row: fp32 activations with fp32, fp16 and bf16 weights.
#include "cpu/avx2/simd.h"
// after Simd
#include "cpu/kernels/convert_inl.h"
#include "cpu/kernels/f32_dot_inl.h"
#include "cpu/kernels/limits_inl.h"
#include "cpu/kernels/linear_inl.h"

namespace moerun::cpu {
namespace {

double dot(DType, int64_t rounds, float* sink) {
  return dot_peak<F32Dot<DType::f32>>(rounds, sink);
}

constexpr KernelTable kTable = {
    .isa = "avx2",
    .f32_activations = {expert_kernels<F32Dot<DType::f32>>(), expert_kernels<F32Dot<DType::f16>>(),
                        expert_kernels<F32Dot<DType::bf16>>()},
    .bf16_activations = {},
    .convert = convert,
    .quantise = avx2_quantise,
    .limits = {.read = read_memory, .dot = dot},
};

}  // namespace

const KernelTable& avx2_kernels() {
  return kTable;
}

}  // namespace moerun::cpu
