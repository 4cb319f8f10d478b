// The quantiser, built for AVX-512.
#include "cpu/kernels/quantise_inl.h"

#include "cpu/kernel_table.h"

namespace moerun::cpu {
QuantiseResult avx512_quantise(const QuantiseArgs& args) {
  return quantise(args);
}
}  // namespace moerun::cpu
