// The AVX-512-VNNI row: the AVX-512 row, and int8 activations with int8 weights.
#include "cpu/avx512/simd.h"
#include "cpu/avx512_vnni/integers.h"
// after Simd and Integers
#include "cpu/kernels/int8_kernels_inl.h"

namespace moerun::cpu {
namespace {

KernelTable make_table() {
  KernelTable table = avx512_kernels();
  table.isa = "avx512_vnni";
  fill_int8_kernels(table);
  return table;
}

}  // namespace

const KernelTable& avx512_vnni_kernels() {
  static const KernelTable table = make_table();
  return table;
}

}  // namespace moerun::cpu
