// int8 weights meet int8 activations: VPDPBUSD multiplies four pairs and adds the products to an int32 sum,
// at twice the rate of bf16 and without converting a code. A Dot as described in cpu/kernels/f32_dot_inl.h.
//
// Activations lie in memory as bf16 and are quantised when they are arranged or packed: a scale per token and
// 64 elements of K (max / 127), so that an outlier costs its own block only. That adds about 1.5 % to the
// error of a layer on Gaussian data, as much as the weights' own codes (derived in
// tests/quant/test_format_kernels.py), and doubles the speed of many tokens.
//
// VPDPBUSD wants one unsigned factor: w + 128, which is one XOR. What that adds, 128 times the sum of x, is
// subtracted by the value at which a sum begins (`minus`).
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "cpu/avx512_bf16/quantised_dots.h"

namespace moerun::cpu {
namespace {

template <WeightFormat W>
struct Int8Dot {
  static constexpr const FormatInfo& format = info(W);
  using X = uint16_t;
  using Tiles = Int8Dot;
  using RowX = int8_t;
  using Vec = Simd::F;
  using Acc = Simd::F;
  using Row = CodedRow;
  using Sum = __v16si;  // not __m512i: GCC 12 keeps arrays of those in memory
  static constexpr bool scaled = true;
  static constexpr bool arranged = true;
  static constexpr bool integer = true;
  static constexpr bool in_place = true;
  static constexpr DType activation_type = DType::bf16;
  static constexpr DotType dot_type = DotType::int8;
  static constexpr int step = 32, group = 2;  // of activations in memory
  static constexpr int block = 64;            // elements of K that share a scale of activations
  static constexpr int64_t block_bytes = block;

  static int64_t row_bytes(const MatrixView& m) { return m.row_stride; }
  static Row row(const MatrixView& m, int64_t n) { return CodedDot<W>::row(m, n); }
  static const char* address(const Row& r, int64_t k) { return r.codes + k; }
  static Vec activations(const X* x) { return Bf16Dot::activations(x); }
  static void store(X* to, Vec v) { Bf16Dot::store(to, v); }
  static Vec join_rounded(Simd::F k0, Simd::F k1) { return Bf16Dot::join_rounded(k0, k1); }

  static float row_scale(const Row& r) {
    if constexpr (format.group) return 1.0f;
    float scale;
    std::memcpy(&scale, r.scales, sizeof(scale));
    return scale;
  }
  static float group_scale(const char* scales, int64_t k) {
    uint16_t half;
    std::memcpy(&half, scales + k / format.group * 2, 2);
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
  }

  // Row by row: [block] codes, the scale (fp32), minus (int32), and nothing up to a multiple of 64 bytes.
  static constexpr int64_t kArranged = 128;
  static int64_t arranged_size(int64_t k_count) { return (k_count + block - 1) / block * kArranged; }
  static void arrange(const X* x, int64_t k_count, RowX* to) {
    for (int64_t k = 0; k < k_count; k += block, to += kArranged) {
      Simd::F v[block / 16];
      __m512i largest = _mm512_setzero_si512();
      for (int i = 0; i < block / 16; ++i) {
        v[i] = Simd::load_as<DType::bf16>(x + k + 16 * i);
        largest = _mm512_max_epu32(largest, magnitude(v[i]));
      }
      const float scale = scale_of(_mm512_set1_epi32(static_cast<int>(_mm512_reduce_max_epu32(largest))))[0];
      const Simd::F inverse = inverse_of(Simd::set1(scale));
      __m512i sum = _mm512_setzero_si512();
      for (int i = 0; i < block / 16; ++i) {
        const __m512i q = _mm512_cvtps_epi32(Simd::mul(v[i], inverse));
        sum = _mm512_add_epi32(sum, q);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 16 * i), _mm512_cvtsepi32_epi8(q));
      }
      const int minus = -128 * _mm512_reduce_add_epi32(sum);
      std::memcpy(to + block, &scale, sizeof(scale));
      std::memcpy(to + block + 4, &minus, sizeof(minus));
    }
  }

  // sum[m] += codes * scales * x[m] for a block of K
  template <int M>
  static void add_block(const Row& r, int64_t k, const RowX* const* x, Acc (&sum)[M]) {
    const __m512i codes = unsigned_codes(_mm512_loadu_si512(r.codes + k));
    const float weight_scale = format.group ? group_scale(r.scales, k) : 1.0f;
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const RowX* xm = x[m] + k / block * kArranged;
      int minus;
      std::memcpy(&minus, xm + block + 4, sizeof(minus));
      const __m512i begin = _mm512_zextsi128_si512(_mm_cvtsi32_si128(minus));
      const __m512i products = _mm512_dpbusd_epi32(begin, codes, _mm512_loadu_si512(xm));
      float scale;
      std::memcpy(&scale, xm + block, sizeof(scale));
      if constexpr (format.group) scale *= weight_scale;
      sum[m] = Simd::fmadd(to_float((Sum)products), Simd::set1(scale), sum[m]);
    }
  }

  // Tiles: see cpu/kernels/int8_tile_inl.h.
  static Sum broadcast(const char* four_codes) {
    int word;
    std::memcpy(&word, four_codes, sizeof(word));
    return (Sum)unsigned_codes(_mm512_set1_epi32(word));
  }
  static Sum multiply_add(Sum w, Sum x, Sum c) {
    return (Sum)_mm512_dpbusd_epi32((__m512i)c, (__m512i)w, (__m512i)x);
  }
  static Simd::F as_float(Sum bits) { return _mm512_castsi512_ps((__m512i)bits); }
  static Simd::F to_float(Sum v) { return _mm512_cvtepi32_ps((__m512i)v); }

  // Of words of 2 bf16: number i of each token; zeros from 2 `count` on.
  static auto unpacked(const Vec* words, int64_t count) {
    return [=](int i) {
      if (i / 2 >= count) return Simd::zero();
      const __m512i word = Simd::bits(words[i / 2]);
      const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000));
      return Simd::from_bits(i % 2 ? _mm512_and_si512(word, high) : _mm512_slli_epi32(word, 16));
    };
  }

  // One block of one vector of tokens, value(i) being number i of each, as words of 4 codes; then scale and
  // minus. Adding 1.5 * 2^23 rounds to an integer and leaves it in the lowest bits.
  template <class Value>
  static void quantise_block(const Value& value, Sum* codes) {
    __m512i largest = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int i = 0; i < block; ++i) largest = _mm512_max_epu32(largest, magnitude(value(i)));
    const Simd::F scale = scale_of(largest), inverse = inverse_of(scale), integral = Simd::set1(0x1.8p23f);
    const __m512i one = _mm512_set1_epi8(1);
    __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 2
    for (int w = 0; w < block / 4; ++w) {
      const auto q = [&](int i) { return Simd::bits(Simd::fmadd(value(4 * w + i), inverse, integral)); };
      const __m512i word = below<16>(below<8>(q(0), q(1)), below<8>(q(2), q(3)));
      sum = _mm512_dpbusd_epi32(sum, one, word);
      codes[w] = (Sum)word;
    }
    codes[block / 4] = (Sum)Simd::bits(scale);
    codes[block / 4 + 1] = (Sum)_mm512_slli_epi32(_mm512_sub_epi32(_mm512_setzero_si512(), sum), 7);
  }

 private:
  // The low N bits of each lane of `low` below those of `high`.
  template <int N>
  static __m512i below(__m512i low, __m512i high) {
    const __m512i mask = _mm512_set1_epi32((1 << N) - 1);
    return _mm512_ternarylogic_epi32(mask, low, _mm512_slli_epi32(high, N), 0xca);  // mask ? low : high
  }
  static __m512i unsigned_codes(__m512i codes) {
    return _mm512_xor_si512(codes, _mm512_set1_epi8(static_cast<char>(0x80)));
  }
  static __m512i magnitude(Simd::F v) {
    return _mm512_and_si512(Simd::bits(v), _mm512_set1_epi32(0x7fffffff));
  }
  // max / 127 from the largest magnitude's bits; NaN if a number was not finite
  static Simd::F scale_of(__m512i largest) {
    const __m512i infinity = _mm512_set1_epi32(0x7f800000);
    const Simd::F scale = Simd::mul(Simd::from_bits(largest), Simd::set1(1.0f / 127.0f));
    return _mm512_mask_mov_ps(scale, _mm512_cmpge_epu32_mask(largest, infinity),
                              Simd::from_bits(_mm512_set1_epi32(0x7fc00000)));
  }
  // 0 for a scale whose inverse is not finite, or is not a number
  static Simd::F inverse_of(Simd::F scale) {
    const __mmask16 normal = _mm512_cmp_ps_mask(scale, Simd::set1(1e-36f), _CMP_GE_OQ);
    return _mm512_maskz_div_ps(normal, Simd::set1(1.0f), scale);
  }
};

}  // namespace
}  // namespace moerun::cpu
