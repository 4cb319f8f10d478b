// The quantiser, built for AVX2.
#include "cpu/kernels/quantise_inl.h"

#include "cpu/kernel_table.h"

namespace moerun::cpu {
QuantiseResult avx2_quantise(const QuantiseArgs& args) {
  return quantise(args);
}
}  // namespace moerun::cpu
