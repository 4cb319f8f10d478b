// int8 activations, for weights of bytes that VPDPBUSD multiplies: how bf16 in memory becomes codes, and the
// vectors of integers that sums are made in. Included after a Simd and its add_products; the rest is vectors
// of the compiler.
//
// A scale per token and Block elements of K (max / 127), so that an outlier costs its own block only.
// VPDPBUSD wants one unsigned factor: w + 128. What that adds, 128 times the sum of x, is subtracted by the
// value at which a sum begins (`minus`).
#pragma once
#include <cstdint>
#include <cstring>

#include "cpu/kernel_table.h"
#include "src/types.h"

namespace moerun::cpu {
namespace {

template <int Block>
struct Int8Activations {
  using X = uint16_t;
  using Vec = Simd::F;
  using Sum = Integers;
  static constexpr bool integer = true;
  static constexpr DType activation_type = DType::bf16;
  static constexpr DotType dot_type = DotType::int8;
  static constexpr int group = 2;      // of activations in memory
  static constexpr int block = Block;  // elements of K that share a scale of activations

  static Vec activations(const X* x) {
    Vec words;
    std::memcpy(&words, x, sizeof(words));
    return words;
  }
  static Sum multiply_add(Sum w, Sum x, Sum c) { return add_products(c, w, x); }
  static Simd::F as_float(Sum bits) { return (Simd::F)bits; }
  static Simd::F to_float(Sum v) { return (Simd::F) __builtin_convertvector(v, Floats); }

  // Of words of 2 bf16: number i of each token; zeros from 2 `count` on.
  static auto unpacked(const Vec* words, int64_t count) {
    return [=](int i) {
      if (i / 2 >= count) return Simd::zero();
      const Sum word = (Sum)words[i / 2];
      return as_float(i % 2 ? word & static_cast<int>(0xffff0000) : word << 16);
    };
  }

  // One block of one vector of tokens, value(i) being number i of each, as words of 4 codes; then scale and
  // minus.
  template <class Value>
  static void quantise_block(const Value& value, Sum* codes) {
    Sum largest = {}, sum = {};
#pragma GCC unroll 4
    for (int i = 0; i < block; ++i) largest = larger(largest, magnitude(value(i)));
    const Simd::F scale = scale_of(largest), inverse = inverse_of(scale);
#pragma GCC unroll 2
    for (int w = 0; w < block / 4; ++w) {
      const auto q = [&](int i) { return rounded(value(4 * w + i), inverse); };
      const Sum low = (q(0) & 0xff) | ((q(1) << 8) & 0xff00);
      const Sum word = (low & 0xffff) | (((q(2) & 0xff) | (q(3) << 8)) << 16);
      sum = add_products(sum, all(0x01010101), word);
      codes[w] = word;
    }
    codes[block / 4] = (Sum)scale;
    codes[block / 4 + 1] = sum * -128;
  }

 protected:
  typedef float Floats __attribute__((vector_size(sizeof(Sum))));

  static Sum all(int v) { return Sum{} + v; }
  static Sum magnitude(Simd::F v) { return (Sum)v & 0x7fffffff; }
  static Sum larger(Sum a, Sum b) { return a > b ? a : b; }  // not negative, so floats' bits are in order

  // v * inverse rounded to nearest even, in the lowest bits; others are above.
  static Sum rounded(Simd::F v, Simd::F inverse) {
    return (Sum)Simd::fmadd(v, inverse, Simd::set1(0x1.8p23f));
  }

  // max / 127 from the largest magnitude's bits; NaN if a number was not finite
  static Simd::F scale_of(Sum largest) {
    const Sum scale = (Sum)Simd::mul(as_float(largest), Simd::set1(1.0f / 127.0f));
    return as_float(largest >= 0x7f800000 ? all(0x7fc00000) : scale);
  }
  // 0 for a scale whose inverse is not finite, or is not a number
  static Simd::F inverse_of(Simd::F scale) {
    const Floats s = (Floats)scale;
    return (Simd::F)(s >= 1e-36f ? 1.0f / s : Floats{});
  }
};

}  // namespace
}  // namespace moerun::cpu
