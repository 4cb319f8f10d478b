// Codes of quantised weights as floats, with AVX-512: what cpu/kernels/coded_f32_dot_inl.h needs.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "cpu/avx512/simd.h"
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

  // 32 bytes: sign-extend, convert; 2 operations a vector.
  static Pair int8(const char* p) { return {widen_int8(p), widen_int8(p + 16)}; }

  // 32 bytes, times 2^-8: e4m3 is fp16 without its highest bit of exponent, so that the conversion does
  // subnormals too. 4 operations a vector.
  static Pair e4m3_over_256(const char* p) {
    const __m512i code = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    const __m512i half = _mm512_and_si512(_mm512_slli_epi16(code, 7), _mm512_set1_epi16(~0x4000));
    const __m512i ones = _mm512_set1_epi16(-1);
    const __mmask32 nan = _mm512_cmpeq_epi16_mask(_mm512_or_si512(code, _mm512_set1_epi16(~0x7f)), ones);
    const __m512i value = _mm512_mask_mov_epi16(half, nan, ones);
    return {_mm512_cvtph_ps(_mm512_castsi512_si256(value)),
            _mm512_cvtph_ps(_mm512_extracti64x4_epi64(value, 1))};
  }

  // What the 16 four-bit codes mean; VPERMPS looks them up by the four low bits. 3 operations a vector.
  struct Table {
    F values;
    F operator()(__m512i nibbles) const { return _mm512_permutexvar_ps(nibbles, values); }
  };
  static Table minus_zero(int zero) { return {_mm512_load_ps(kMinusZero.value + (zero & 15) * 16)}; }
  static Table e2m1() { return {_mm512_load_ps(kE2m1.value)}; }

  // 16 bytes with two codes each, the first in the low half.
  static Pair nibbles(const char* p, const Table& table) {
    const __m512i words = _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {table(spread(words, 0)), table(spread(words, 2))};
  }

  template <ScaleType T>
  static F scale(const char* scales, int64_t i) {
    if constexpr (T == ScaleType::f32) {
      return _mm512_set1_ps(reinterpret_cast<const float*>(scales)[i]);
    } else if constexpr (T == ScaleType::f16) {
      int16_t half;
      std::memcpy(&half, scales + 2 * i, 2);
      return _mm512_cvtph_ps(_mm256_set1_epi16(half));
    } else {
      return _mm512_set1_ps(kE8m0.value[static_cast<uint8_t>(scales[i])]);
    }
  }

 private:
  static F widen_int8(const char* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  // Code i of words `first` and `first + 1` in the lowest bits of lane i, with others above.
  static __m512i spread(__m512i words, int first) {
    const __m512i half = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512i shift = _mm512_set_epi32(28, 24, 20, 16, 12, 8, 4, 0, 28, 24, 20, 16, 12, 8, 4, 0);
    return _mm512_srlv_epi32(
        _mm512_permutexvar_epi32(_mm512_add_epi32(half, _mm512_set1_epi32(first)), words), shift);
  }
};

}  // namespace
}  // namespace moerun::cpu
