// The quantiser, built for any x86-64.
#include "cpu/kernels/quantise_inl.h"

#include "cpu/kernel_table.h"

namespace moerun::cpu {
QuantiseResult ref_quantise(const QuantiseArgs& args) {
  return quantise(args);
}
}  // namespace moerun::cpu
