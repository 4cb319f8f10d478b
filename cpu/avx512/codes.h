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

  // Four-bit codes: a Meaning makes floats of those in the lowest bits of each lane, whatever is above them.
  // VPERMPS looks them up by the four low bits.
  struct MinusEight {
    F values = _mm512_load_ps(kMinusEight.value);
    F operator()(__m512i nibbles) const { return _mm512_permutexvar_ps(nibbles, values); }
  };
  struct E2m1 {
    F values = _mm512_load_ps(kE2m1.value);
    F operator()(__m512i nibbles) const { return _mm512_permutexvar_ps(nibbles, values); }
  };
  class MinusZero {
   public:
    explicit MinusZero(F zero) : zero_less_eight_(_mm512_sub_ps(zero, _mm512_set1_ps(8))) {}  // in each lane
    F operator()(__m512i nibbles) const { return _mm512_sub_ps(minus_eight_(nibbles), zero_less_eight_); }

   private:
    MinusEight minus_eight_;
    F zero_less_eight_;
  };

  // 16 bytes, two codes each, the first in the low half. 3 operations a vector.
  template <class Meaning>
  static Pair nibbles(const char* p, const Meaning& meaning) {
    const __m512i words = _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {meaning(spread(words, 0)), meaning(spread(words, 2))};
  }

  // 64 bytes, a word of 8 codes in each lane; vector j holds code j of every word. 2 operations a vector.
  template <class Meaning>
  struct Words {
    __m512i line;
    Meaning meaning;
    Words(const char* p, const Meaning& meaning) : line(_mm512_loadu_si512(p)), meaning(meaning) {}
    template <int J>
    F vector() const {
      return meaning(_mm512_srli_epi32(line, 4 * J));
    }
  };

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

  // G scales from the first on, each in 16 / G lanes.
  template <ScaleType T, int G>
  static F scales(const char* first) {
    if constexpr (G == 1) {
      return scale<T>(first, 0);
    } else if constexpr (T == ScaleType::f16) {
      return spread_groups<G>(_mm_cvtph_ps(load_groups<2 * G>(first)));
    } else {
      static_assert(T == ScaleType::e8m0);  // subnormal for code 0, infinite for NaN
      const __m128i bits = _mm_slli_epi32(_mm_cvtepu8_epi32(load_groups<G>(first)), 23);
      return spread_groups<G>(_mm_castsi128_ps(_mm_max_epi32(bits, _mm_set1_epi32(1 << 22))));
    }
  }
  template <int G>
  static F zeros(const uint8_t* first) {
    const __m128i codes = _mm_and_si128(_mm_cvtepu8_epi32(load_groups<G>(first)), _mm_set1_epi32(15));
    return spread_groups<G>(_mm_cvtepi32_ps(codes));
  }

 private:
  template <int Bytes>
  static __m128i load_groups(const void* from) {
    int64_t raw = 0;
    std::memcpy(&raw, from, Bytes);
    return _mm_cvtsi64_si128(raw);
  }
  template <int G>
  static F spread_groups(__m128 groups) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    constexpr int shift = G == 1 ? 4 : G == 2 ? 3 : 2;  // 16 / G lanes each
    return _mm512_permutexvar_ps(_mm512_srli_epi32(lane, shift), _mm512_castps128_ps512(groups));
  }
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
