// Codes of quantised weights as floats, with AVX2 and F16C: what cpu/kernels/coded_f32_dot_inl.h needs.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "cpu/avx2/simd.h"
#include "cpu/kernels/code_tables_inl.h"
#include "src/types.h"

namespace moerun::cpu {
namespace {

struct Codes {
  using F = Simd::F;
  // Two vectors of codes in order of k.
  struct Pair {
    F first, second;
  };

  // 16 bytes: sign-extend, convert; 2 operations a vector.
  static Pair int8(const char* p) { return {widen_int8(p), widen_int8(p + 8)}; }

  // 16 bytes, times 2^-8: e4m3 is fp16 without its highest bit of exponent, so that F16C does subnormals too.
  // 5 operations a vector.
  static Pair e4m3_over_256(const char* p) {
    const __m256i code = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m256i half = _mm256_and_si256(_mm256_slli_epi16(code, 7), _mm256_set1_epi16(~0x4000));
    const __m256i ones = _mm256_set1_epi16(-1);
    const __m256i nan = _mm256_cmpeq_epi16(_mm256_or_si256(code, _mm256_set1_epi16(~0x7f)), ones);
    const __m256i value = _mm256_or_si256(half, nan);  // all ones are a NaN, too
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(value)),
            _mm256_cvtph_ps(_mm256_extracti128_si256(value, 1))};
  }

  // Four-bit codes less a zero point: as the last bits of 2^23 + code. 4 operations a vector.
  struct MinusZero {
    F zero;
    F operator()(__m256i nibbles) const {
      const __m256i code = _mm256_and_si256(nibbles, _mm256_set1_epi32(15));
      return _mm256_sub_ps(_mm256_castsi256_ps(_mm256_or_si256(code, _mm256_set1_epi32(kTwoTo23))), zero);
    }
  };
  static MinusZero minus_zero(int zero) {
    return {_mm256_castsi256_ps(_mm256_set1_epi32(kTwoTo23 | (zero & 15)))};
  }

  // A magnitude from a table, by the three low bits, and a sign. 5 operations a vector.
  struct E2m1 {
    F magnitudes;
    F operator()(__m256i nibbles) const {
      const __m256i sign = _mm256_slli_epi32(_mm256_srli_epi32(nibbles, 3), 31);
      return _mm256_xor_ps(_mm256_permutevar8x32_ps(magnitudes, nibbles), _mm256_castsi256_ps(sign));
    }
  };
  static E2m1 e2m1() { return {Simd::load(kE2m1.value)}; }

  // 8 bytes with two codes each, the first in the low half.
  template <class Meaning>
  static Pair nibbles(const char* p, const Meaning& meaning) {
    return {meaning(spread(p)), meaning(spread(p + 4))};
  }

  template <ScaleType T>
  static F scale(const char* scales, int64_t i) {
    if constexpr (T == ScaleType::f32) {
      return _mm256_broadcast_ss(reinterpret_cast<const float*>(scales) + i);
    } else if constexpr (T == ScaleType::f16) {
      int16_t half;
      std::memcpy(&half, scales + 2 * i, 2);
      return _mm256_cvtph_ps(_mm_set1_epi16(half));
    } else {
      return _mm256_broadcast_ss(kE8m0.value + static_cast<uint8_t>(scales[i]));
    }
  }

 private:
  static constexpr int kTwoTo23 = 0x4b000000;  // as fp32
  static F widen_int8(const char* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  // Code i of 4 bytes in the lowest bits of lane i, with others above.
  static __m256i spread(const char* p) {
    int32_t eight;
    std::memcpy(&eight, p, 4);
    return _mm256_srlv_epi32(_mm256_set1_epi32(eight), _mm256_set_epi32(28, 24, 20, 16, 12, 8, 4, 0));
  }
};

}  // namespace
}  // namespace moerun::cpu
