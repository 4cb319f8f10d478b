// Quantised weights meet bf16 activations: codes become bf16 exactly, 32 in order of k, and VDPBF16PS does
// the rest. Dots as described in cpu/kernels/f32_dot_inl.h, with scales; one per code, times how scales are
// stored.
//
// Why bf16 and not int8 activations: rounding x to bf16 costs 2^-9, to int8 with a scale per group about four
// times as much, and a few tokens are bound by reading the codes either way.
//   4 bits   VPERMW looks 32 values up by the low five bits of 16-bit words; a table of 32 with every value
//   twice makes
//            masking the neighbour's bit needless. 4 operations per 32 codes.
//   int8     sign-extend, convert, round to bf16 (exact up to 256). 5 operations.
//   e4m3     the exponent is rebiased by an addition; subnormals come from a table of 8. 9 operations.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "cpu/avx512_bf16/bf16_dot.h"
#include "src/types.h"

namespace moerun::cpu {
namespace {

struct CodedRow {
  const char* codes;
  const char* scales;    // of this row's first group
  const uint8_t* zeros;  // likewise, or null
};

template <WeightFormat W>
struct CodedDot {
  static constexpr const FormatInfo& format = info(W);
  using X = uint16_t;
  using Vec = Simd::F;
  using Acc = Simd::F;
  using Row = CodedRow;
  static constexpr bool scaled = true;
  static constexpr DType activation_type = DType::bf16;
  static constexpr int step = 32;
  static constexpr int64_t step_bytes = step * format.bits / 8;
  static constexpr int group = 2;
  static constexpr bool in_place = false;

  static int64_t row_bytes(const MatrixView& m) { return m.row_stride * format.bits / 8; }
  static Row row(const MatrixView& m, int64_t n) {
    const int64_t first = n / format.block_rows * m.scale_stride;
    return {static_cast<const char*>(m.data) + n * row_bytes(m),
            static_cast<const char*>(m.scales) + first * size_of(format.scale),
            m.zeros ? m.zeros + first : nullptr};
  }
  static const char* address(const Row& r, int64_t k) { return r.codes + k * format.bits / 8; }
  static Vec activations(const X* x) { return Bf16Dot::activations(x); }
  static Vec broadcast(const void* word) { return Bf16Dot::broadcast(word); }
  static void store(X* to, Vec v) { Bf16Dot::store(to, v); }
  static Vec join_rounded(Simd::F k0, Simd::F k1) { return Bf16Dot::join_rounded(k0, k1); }
  static Acc multiply_add(Vec a, Vec b, Acc c) { return Bf16Dot::multiply_add(a, b, c); }

  // 32 codes as bf16, before scaling
  static Vec codes(const Row& r, int64_t k) {
    const char* from = address(r, k);
    if constexpr (format.bits == 4) return look_up(from, table(r, k));
    if constexpr (W == WeightFormat::fp8_b128) return from_e4m3(from);
    const __m512i low = _mm512_cvtepi8_epi32(load_16_bytes(from)),
                  high = _mm512_cvtepi8_epi32(load_16_bytes(from + 16));
    return join(_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(high));
  }

  static Simd::F scale(const Row& r, int64_t k) {
    const int64_t i = format.group ? k / format.group : 0;
    if constexpr (format.scale == ScaleType::f32)
      return _mm512_set1_ps(reinterpret_cast<const float*>(r.scales)[i]);
    if constexpr (format.scale == ScaleType::f16) {
      uint16_t half;
      std::memcpy(&half, r.scales + 2 * i, 2);
      return _mm512_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
    }
    const uint32_t exponent =
        static_cast<uint8_t>(r.scales[i]);  // 2^(exponent - 127); 0 is subnormal in fp32
    return _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(exponent ? exponent << 23 : 0x400000)));
  }

  // 32 weights, scaled and rounded to bf16: what is staged for tiles
  static Vec weights(const Row& r, int64_t k) {
    const __m512i c = _mm512_castps_si512(codes(r, k));
    const Simd::F s = scale(r, k);
    const __m512i low = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(c)), 16);
    const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(c, 1)), 16);
    return join(_mm512_mul_ps(_mm512_castsi512_ps(low), s), _mm512_mul_ps(_mm512_castsi512_ps(high), s));
  }
  static Vec weights(const Row& r, int64_t k, int) { return weights(r, k); }  // rows are filled up with zeros

 private:
  static __m128i load_16_bytes(const char* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static Vec join(Simd::F low, Simd::F high) {
    return Simd::from_bits((__m512i)_mm512_cvtne2ps_pbh(high, low));
  }

  // What the 16 codes mean, as bf16, twice; with a zero point, a row of 16 tables.
  static __m512i table(const Row& r, int64_t k) {
    if constexpr (format.zeros) return _mm512_load_si512(kMinusZero.value[r.zeros[k / format.group] & 15]);
    if constexpr (W == WeightFormat::mxfp4) return _mm512_load_si512(kE2m1.value[0]);
    return _mm512_load_si512(kMinusZero.value[8]);
  }
  static Vec look_up(const char* from, __m512i values) {
    const __m512i byte = _mm512_cvtepu8_epi32(load_16_bytes(from));  // even k in bits 0-3, odd k in bits 4-7
    const __m512i words = _mm512_or_si512(byte, _mm512_slli_epi32(byte, 12));  // odd k in bits 16-19
    return Simd::from_bits(_mm512_permutexvar_epi16(words, values));
  }

  static Vec from_e4m3(const char* from) {
    const __m512i word = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    const __m512i magnitude = _mm512_and_si512(word, _mm512_set1_epi16(0x7f));
    // exponent and fraction in bf16's places, the bias raised from 7 to 127
    __m512i v = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), _mm512_set1_epi16(120 << 7));
    const __mmask32 subnormal = _mm512_testn_epi16_mask(word, _mm512_set1_epi16(0x78));
    v = _mm512_mask_permutexvar_epi16(v, subnormal, magnitude, _mm512_load_si512(kE4m3Subnormal.value[0]));
    const __mmask32 nan = _mm512_cmpeq_epi16_mask(magnitude, _mm512_set1_epi16(0x7f));
    v = _mm512_mask_mov_epi16(v, nan, _mm512_set1_epi16(0x7fc0));
    const __m512i sign = _mm512_slli_epi16(_mm512_and_si512(word, _mm512_set1_epi16(0x80)), 8);
    return Simd::from_bits(_mm512_or_si512(v, sign));
  }

  template <int N>
  struct Tables {
    alignas(64) uint16_t value[N][32];
  };
  static constexpr uint16_t bf16(float v) {
    return static_cast<uint16_t>(__builtin_bit_cast(uint32_t, v) >> 16);
  }
  static constexpr Tables<16> kMinusZero = [] {  // code - zero, by zero
    Tables<16> t{};
    for (int zero = 0; zero < 16; ++zero)
      for (int i = 0; i < 32; ++i) t.value[zero][i] = bf16(static_cast<float>(i % 16 - zero));
    return t;
  }();
  static constexpr Tables<1> kE2m1 = [] {
    constexpr float kMagnitudes[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
    Tables<1> t{};
    for (int i = 0; i < 32; ++i) t.value[0][i] = bf16(i % 16 < 8 ? kMagnitudes[i % 8] : -kMagnitudes[i % 8]);
    return t;
  }();
  static constexpr Tables<1> kE4m3Subnormal = [] {
    Tables<1> t{};
    for (int i = 0; i < 32; ++i) t.value[0][i] = bf16(static_cast<float>(i % 8) / 512.0f);
    return t;
  }();
};

}  // namespace
}  // namespace moerun::cpu
