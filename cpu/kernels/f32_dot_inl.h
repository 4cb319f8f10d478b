// How weights of any floating format meet fp32 activations: widen, then fused multiply-add. Included after a
// Simd.
//
// A Dot is what the two kernels (rows_inl.h, panel_inl.h) are templates over:
//   X          an activation in memory
//   Vec        a register of weights or activations; Acc a register of sums
//   step       elements of K in one Vec of a row
//   group      consecutive elements of K that one lane of a packed panel holds
#pragma once
#include "src/types.h"

namespace moerun::cpu {
namespace {

template <DType W>
struct F32Dot {
  using X = float;
  using Vec = Simd::F;
  using Acc = Simd::F;
  static constexpr DType weight_type = W;
  static constexpr DType activation_type = DType::f32;
  static constexpr int step = Simd::lanes;
  static constexpr int group = 1;

  static Vec weights(const void* w) { return Simd::load_as<W>(w); }
  static Vec weights(const void* w, int n) { return Simd::load_as<W>(w, n); }  // the rest is zero
  static Vec activations(const X* x) { return Simd::load(x); }
  static Vec broadcast(const X* x) { return Simd::set1(*x); }
  static Acc multiply_add(Vec a, Vec b, Acc c) { return Simd::fmadd(a, b, c); }

  // From columns k (and, where group is 2, k + 1) of 16 rows of a column-major matrix: the panel's entry for
  // them.
  static Vec join_columns(Simd::F k0, Simd::F) { return k0; }
};

}  // namespace
}  // namespace moerun::cpu
