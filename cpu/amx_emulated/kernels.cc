// The AMX row over emulated tiles: slow, and never chosen by itself. Tests run it wherever there is
// AVX-512-BF16.
#include "cpu/amx/emulated_tiles.h"
#include "cpu/avx512/simd.h"
// after Simd
#include "cpu/amx/table_inl.h"

namespace moerun::cpu {

const KernelTable& amx_emulated_kernels() {
  static const KernelTable table = make_amx_table<EmulatedTiles>("amx_emulated", avx512_bf16_kernels());
  return table;
}

}  // namespace moerun::cpu
