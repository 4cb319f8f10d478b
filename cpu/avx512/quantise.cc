// The quantiser, built for AVX-512.
#include "cpu/kernel_table.h"

namespace moerun::cpu {
namespace {
constexpr int kLanes = 16;
}
}  // namespace moerun::cpu

// after kLanes
#include "cpu/kernels/quantise_inl.h"

namespace moerun::cpu {
QuantiseResult avx512_quantise(const QuantiseArgs& args) {
  return quantise(args);
}
}  // namespace moerun::cpu
