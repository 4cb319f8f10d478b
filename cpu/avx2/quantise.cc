// The quantiser, built for AVX2.
#include "cpu/kernel_table.h"

namespace moerun::cpu {
namespace {
constexpr int kLanes = 8;
}
}  // namespace moerun::cpu

// after kLanes
#include "cpu/kernels/quantise_inl.h"

namespace moerun::cpu {
QuantiseResult avx2_quantise(const QuantiseArgs& args) {
  return quantise(args);
}
}  // namespace moerun::cpu
