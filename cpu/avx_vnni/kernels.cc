// The AVX-VNNI row: the AVX2 row, and int8 activations with int8 weights.
#include "cpu/avx2/simd.h"
#include "cpu/avx_vnni/integers.h"
// after Simd and Integers
#include "cpu/kernels/int8_kernels_inl.h"

namespace moerun::cpu {
namespace {

KernelTable make_table() {
  KernelTable table = avx2_kernels();
  table.isa = "avx_vnni";
  fill_int8_kernels(table);
  return table;
}

}  // namespace

const KernelTable& avx_vnni_kernels() {
  static const KernelTable table = make_table();
  return table;
}

}  // namespace moerun::cpu
