// int8 weights meet int8 activations: VPDPBUSD multiplies four pairs and adds the products to an int32 sum,
// without converting a code, at up to twice the rate of bf16. A Dot as described in
// cpu/kernels/f32_dot_inl.h. Included after a Simd and its add_products; the rest is vectors of the compiler.
//
// Activations lie in memory as bf16 and are quantised when they are arranged or packed: a scale per token and
// 64 elements of K (max / 127), so that an outlier costs its own block only. That adds about 1.5 % to the
// error of a layer on Gaussian data, as much as the weights' own codes (derived in
// tests/quant/test_format_kernels.py), and doubles the speed of many tokens.
//
// VPDPBUSD wants one unsigned factor: w + 128, which is one XOR. What that adds, 128 times the sum of x, is
// subtracted by the value at which a sum begins (`minus`).
#pragma once
#include <cstdint>
#include <cstring>

#include "cpu/kernels/coded_row_inl.h"
#include "cpu/kernels/int8_activations_inl.h"
#include "src/types.h"

namespace moerun::cpu {
namespace {

template <WeightFormat W>
struct Int8Dot : Int8Activations<64> {
  static constexpr const FormatInfo& format = info(W);
  using Tiles = Int8Dot;
  using RowX = int8_t;
  using Acc = Simd::F;
  using Row = CodedRow;
  static constexpr bool scaled = true;
  static constexpr bool arranged = true;
  static constexpr bool in_place = true;
  static constexpr bool block_scales = format.group != 0;  // or one a row
  static constexpr int64_t block_bytes = block;

  static int64_t row_bytes(const MatrixView& m) { return coded_row_bytes<W>(m); }
  static Row row(const MatrixView& m, int64_t n) { return coded_row<W>(m, n); }
  static const char* address(const Row& r, int64_t k) { return r.codes + k; }

  static float row_scale(const Row& r) {
    if constexpr (format.group) return 1.0f;
    float scale;
    std::memcpy(&scale, r.scales, sizeof(scale));
    return scale;
  }
  static float block_scale(const char* scales, int64_t k) {
    uint16_t half;
    std::memcpy(&half, scales + k / format.group * 2, 2);
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
  }

  // Row by row: [block] codes, the scale (fp32), minus (int32), and nothing up to a multiple of 64 bytes.
  static constexpr int64_t kArranged = 128;
  static int64_t arranged_size(int64_t k_count) { return (k_count + block - 1) / block * kArranged; }
  static void arrange(const X* x, int64_t k_count, RowX* to) {
    constexpr int vectors = block / Simd::lanes;
    for (int64_t k = 0; k < k_count; k += block, to += kArranged) {
      Simd::F v[vectors];
      Sum largest = {}, sum = {};
      for (int i = 0; i < vectors; ++i) {
        v[i] = Simd::load_as<DType::bf16>(x + k + Simd::lanes * i);
        largest = larger(largest, magnitude(v[i]));
      }
      const Simd::F scale = scale_of(across(largest, larger)), inverse = inverse_of(scale);
      for (int i = 0; i < vectors; ++i) {
        const Sum q = rounded(v[i], inverse);
        const auto codes = __builtin_convertvector(q, Bytes);  // the lowest of each
        std::memcpy(to + Simd::lanes * i, &codes, sizeof(codes));
        sum += (q << 24) >> 24;
      }
      const int minus = -128 * across(sum, [](Sum a, Sum b) { return a + b; })[0];
      const float first = scale[0];
      std::memcpy(to + block, &first, sizeof(first));
      std::memcpy(to + block + 4, &minus, sizeof(minus));
    }
  }

  // sum[m] += codes * scales * x[m] for a block of K
  template <int M>
  static void add_block(const Row& r, int64_t k, const RowX* const* x, Acc (&sum)[M]) {
    constexpr int vectors = block / kVectorBytes;
    Sum codes[vectors];
    for (int i = 0; i < vectors; ++i) codes[i] = load(r.codes + k + i * kVectorBytes) ^ kSigns;
    const float weight_scale = format.group ? block_scale(r.scales, k) : 1.0f;
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const RowX* xm = x[m] + k / block * kArranged;
      int minus;
      std::memcpy(&minus, xm + block + 4, sizeof(minus));
      Sum products = {minus};
      for (int i = 0; i < vectors; ++i)
        products = add_products(products, codes[i], load(xm + i * kVectorBytes));
      float scale;
      std::memcpy(&scale, xm + block, sizeof(scale));
      if constexpr (format.group) scale *= weight_scale;
      sum[m] = Simd::fmadd(to_float(products), Simd::set1(scale), sum[m]);
    }
  }

  // Tiles: see cpu/kernels/int8_tile_inl.h.
  static Sum broadcast(const char* four_codes) {
    int word;
    std::memcpy(&word, four_codes, sizeof(word));
    return all(word) ^ kSigns;
  }

 private:
  typedef int8_t Bytes __attribute__((vector_size(Simd::lanes)));
  static constexpr int kVectorBytes = sizeof(Sum);
  static constexpr int kSigns = static_cast<int>(0x80808080);  // of four codes: makes c unsigned c + 128

  static Sum load(const void* from) {
    Sum v;
    std::memcpy(&v, from, sizeof(v));
    return v;
  }

  // In all lanes, f over all of them; it is associative and commutative.
  template <class F>
  static Sum across(Sum v, const F& f) {
    Sum lane;
    for (int i = 0; i < Simd::lanes; ++i) lane[i] = i;
    for (int step = Simd::lanes / 2; step; step /= 2) v = f(v, __builtin_shuffle(v, lane ^ step));
    return v;
  }
};

}  // namespace
}  // namespace moerun::cpu
