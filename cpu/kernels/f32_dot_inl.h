// How weights of any floating format meet fp32 activations: widen, then fused multiply-add. Included after a
// Simd.
//
// A Dot is what the two kernels (rows_inl.h, tile_inl.h) are templates over:
//   X            an activation in memory
//   Vec          a register of weights or activations; Acc a register of sums
//   Row          a row of a weight matrix, to be read from any multiple of `step` on
//   step         elements of K in one Vec of a row; step_bytes what they take in memory
//   group        consecutive elements of K in one lane of 32 bits: a word
//   Tiles        the Dot that multiplies rows of X, in place or staged, as its dot_type; its Sum is a
//   register
//                of sums of tiles, which to_float converts
//   in_place     whether rows hold X, so that words may be broadcast from where they lie
//   scaled       whether rows are codes with scales: then add_block(row, k, x, sum) adds the products of
//   `block`
//                elements of K, codes times scales times x, but for row_scale(row)
//   arranged     whether rows_inl.h reads activations in a form of their own, RowX, that arrange() makes
#pragma once
#include <cstring>

#include "cpu/kernel_table.h"

namespace moerun::cpu {
namespace {

template <DType W>
inline const char* element(const MatrixView& m, int64_t row, int64_t k) {
  return static_cast<const char*>(m.data) + (row * m.row_stride + k * m.col_stride) * size_of(W);
}

template <DType W>
struct F32Dot {
  using X = float;
  using Tiles = F32Dot<DType::f32>;
  using RowX = X;
  using Vec = Simd::F;
  using Acc = Simd::F;
  using Sum = Acc;
  using Row = const char*;
  static constexpr bool scaled = false;
  static constexpr bool arranged = false;
  static constexpr DType weight_type = W;
  static constexpr DType activation_type = DType::f32;
  static constexpr DotType dot_type = DotType::f32;
  static constexpr int step = Simd::lanes;
  static constexpr int64_t step_bytes = step * size_of(W);
  static constexpr int group = 1;
  static constexpr bool in_place = W == DType::f32;

  static int64_t row_bytes(const MatrixView& m) { return m.row_stride * size_of(W); }
  static Row row(const MatrixView& m, int64_t n) { return element<W>(m, n, 0); }
  static const char* address(Row r, int64_t k) { return r + k * size_of(W); }
  static Vec weights(Row r, int64_t k) { return Simd::load_as<W>(address(r, k)); }
  static Vec weights(Row r, int64_t k, int n) {
    return Simd::load_as<W>(address(r, k), n);
  }  // the rest is zero
  static Vec activations(const X* x) { return Simd::load(x); }
  static Vec broadcast(const void* word) {  // of any alignment
    float value;
    std::memcpy(&value, word, sizeof(value));
    return Simd::set1(value);
  }
  static void store(X* to, Vec v) { Simd::store(to, v); }
  static Simd::F to_float(Sum v) { return v; }
  static Acc multiply_add(Vec a, Vec b, Acc c) { return Simd::fmadd(a, b, c); }

  // A word from `group` of its elements, each in the same lane of one of the two; as they are, or rounded to
  // X.
  static Vec join(Simd::F k0, Simd::F) { return k0; }
  static Vec join_rounded(Simd::F k0, Simd::F) { return k0; }
};

}  // namespace
}  // namespace moerun::cpu
