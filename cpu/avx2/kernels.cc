// The AVX2 row: fp32 activations with weights of every format.
#include "cpu/avx2/codes.h"
#include "cpu/avx2/simd.h"
// after Simd and Codes
#include "cpu/kernels/attention_inl.h"
#include "cpu/kernels/convert_inl.h"
#include "cpu/kernels/f32_kernels_inl.h"
#include "cpu/kernels/limits_inl.h"
#include "cpu/kernels/prompt_attention_inl.h"

namespace moerun::cpu {
namespace {

constexpr KernelTable make_table() {
  KernelTable table = {
      .isa = "avx2",
      .f32_activations = {},
      .bf16_activations = {},
      .dense = {attend, rms_norm, attend_prompt},
      .convert = convert,
      .quantise = avx2_quantise,
      .limits = {.read = read_memory, .dot = {dot_peak<F32Dot<DType::f32>>}},
  };
  fill_f32_kernels(table.f32_activations);
  return table;
}

constexpr KernelTable kTable = make_table();

}  // namespace

const KernelTable& avx2_kernels() {
  return kTable;
}

}  // namespace moerun::cpu
