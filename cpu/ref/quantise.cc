// The quantiser, built for any x86-64.
#include "cpu/kernel_table.h"

namespace moerun::cpu {
namespace {
constexpr int kLanes = 8;
}
}  // namespace moerun::cpu

// after kLanes
#include "cpu/kernels/quantise_inl.h"

namespace moerun::cpu {
QuantiseResult ref_quantise(const QuantiseArgs& args) {
  return quantise(args);
}
}  // namespace moerun::cpu
