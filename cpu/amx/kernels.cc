// The AMX row: bf16 activations with bf16, int4, fp8 and mxfp4 weights, many tokens in tile registers.
#include "cpu/amx/tiles.h"
#include "cpu/avx512/simd.h"
// after Simd
#include "cpu/amx/table_inl.h"

namespace moerun::cpu {

const KernelTable& amx_kernels() {
  static const KernelTable table = make_amx_table<HardwareTiles>("amx", avx512_bf16_kernels());
  return table;
}

}  // namespace moerun::cpu
