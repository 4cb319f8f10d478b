// How quantised weights meet fp32 activations: codes become floats in registers, exactly, in order of k; the
// products of a block are summed, then scaled. Included after a Simd and its Codes (cpu/<isa>/codes.h). A Dot
// as described in f32_dot_inl.h.
//
// Bytes: the codes once, plus scales. Operations per vector of weights: what Codes says, one load of x and
// one multiply-add per token; a block adds about 4 for its scale. Bound at one token: memory for 8-bit codes,
// arithmetic for 4-bit ones.
#pragma once
#include <cstdint>

#include "cpu/kernels/coded_row_inl.h"
#include "cpu/kernels/f32_dot_inl.h"
#include "src/types.h"

namespace moerun::cpu {
namespace {

template <WeightFormat W>
struct CodedF32Dot {
  static constexpr const FormatInfo& format = info(W);
  using X = float;
  using RowX = X;
  using Vec = Simd::F;
  using Acc = Simd::F;
  using Row = CodedRow;
  static constexpr bool scaled = true;
  static constexpr bool arranged = false;
  static constexpr DType activation_type = DType::f32;
  static constexpr int group = 1;
  static constexpr bool in_place = false;

  // At most four vectors: more would not stay in registers beside the sums of four tokens.
  static constexpr int block = format.group == 32 ? 32 : 4 * Simd::lanes;
  static constexpr int64_t block_bytes = block * format.bits / 8;
  static constexpr int step = block;
  static constexpr int64_t step_bytes = block_bytes;
  struct Block {
    Simd::F vec[block / Simd::lanes];
  };

  static int64_t row_bytes(const MatrixView& m) { return coded_row_bytes<W>(m); }
  static Row row(const MatrixView& m, int64_t n) { return coded_row<W>(m, n); }
  static const char* address(const Row& r, int64_t k) { return r.codes + k * format.bits / 8; }
  static Vec activations(const X* x) { return Simd::load(x); }
  static Vec broadcast(const void* word) { return F32Dot<DType::f32>::broadcast(word); }
  static Acc multiply_add(Vec a, Vec b, Acc c) { return Simd::fmadd(a, b, c); }
  static Vec join_rounded(Simd::F k0, Simd::F) { return k0; }
  static void store(X* to, Vec v) { Simd::store(to, v); }
  static void store(X* to, const Block& b) {
    for (int j = 0; j < block / Simd::lanes; ++j) Simd::store(to + j * Simd::lanes, b.vec[j]);
  }

  // sum[m] += codes * scale * x[m] over `block` elements of K
  template <int M>
  static void add_block(const Row& r, int64_t k, const X* const* x, Acc (&sum)[M]) {
    const Block c = codes(r, k);
    const Simd::F s = scale(r, k);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      Simd::F products = Simd::mul(c.vec[0], Simd::load(x[m] + k));
#pragma GCC unroll 4
      for (int j = 1; j < block / Simd::lanes; ++j)
        products = Simd::fmadd(c.vec[j], Simd::load(x[m] + k + j * Simd::lanes), products);
      sum[m] = Simd::fmadd(products, s, sum[m]);
    }
  }

  // What add_block leaves out: a factor of the whole row.
  static float row_scale(const Row&) { return kUnit; }

  // A block of weights, scaled: what is staged for tiles.
  static Block weights(const Row& r, int64_t k) {
    Block b = codes(r, k);
    const Simd::F s = Simd::mul(scale(r, k), Simd::set1(kUnit));
    for (Simd::F& v : b.vec) v = Simd::mul(v, s);
    return b;
  }
  static Block weights(const Row& r, int64_t k, int) {
    return weights(r, k);
  }  // rows are filled up with zeros

 private:
  static constexpr float kUnit = W == WeightFormat::fp8_b128 ? 256.0f : 1.0f;  // of codes()

  static Simd::F scale(const Row& r, int64_t k) {
    return Codes::scale<format.scale>(r.scales, format.group ? k / format.group : 0);
  }

  static Block codes(const Row& r, int64_t k) {
    const char* from = address(r, k);
    const auto pair = [&](int64_t i) {
      const char* p = from + i * 2 * Simd::lanes * format.bits / 8;
      if constexpr (W == WeightFormat::mxfp4)
        return Codes::nibbles(p, Codes::e2m1());
      else if constexpr (format.bits == 4)
        return Codes::nibbles(p, Codes::minus_zero(format.zeros ? r.zeros[k / format.group] : 8));
      else if constexpr (W == WeightFormat::fp8_b128)
        return Codes::e4m3_over_256(p);
      else
        return Codes::int8(p);
    };
    Block b;
#pragma GCC unroll 2
    for (int j = 0; j < block / Simd::lanes; j += 2) {
      const Codes::Pair two = pair(j / 2);
      b.vec[j] = two.first;
      b.vec[j + 1] = two.second;
    }
    return b;
  }
};

}  // namespace
}  // namespace moerun::cpu
