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

  // Four-bit codes: a Meaning makes floats of code J of the words in a vector, which is in bits 4 J .. 4 J
  // + 3. Less 8: 3 operations a vector, since (code - 8) is code ^ 8 as a signed number.
  struct MinusEight {
    static __m256i prepare(__m256i words) {
      return _mm256_xor_si256(words, _mm256_set1_epi32(static_cast<int>(0x88888888)));
    }
    template <int J>
    F code(__m256i words) const {
      return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(words, 28 - 4 * J), 28));
    }
  };
  // Less a zero point in each lane: 4 operations a vector.
  struct MinusZero {
    F zero;
    static __m256i prepare(__m256i words) { return words; }
    template <int J>
    F code(__m256i words) const {
      const __m256i code = _mm256_and_si256(_mm256_srli_epi32(words, 4 * J), _mm256_set1_epi32(15));
      return _mm256_sub_ps(_mm256_cvtepi32_ps(code), zero);
    }
  };
  // e2m1, a magnitude from a table, by the three low bits, and a sign: 5 operations a vector.
  struct E2m1 {
    F magnitudes = Simd::load(kE2m1.value);
    static __m256i prepare(__m256i words) { return words; }
    template <int J>
    F code(__m256i words) const {
      const F magnitude = _mm256_permutevar8x32_ps(magnitudes, _mm256_srli_epi32(words, 4 * J));
      const __m256i sign = _mm256_set1_epi32(static_cast<int>(0x80000000));
      const __m256i bit = _mm256_and_si256(_mm256_slli_epi32(words, 28 - 4 * J), sign);
      return _mm256_xor_ps(magnitude, _mm256_castsi256_ps(bit));
    }
  };

  // 8 bytes, two codes each, the first in the low half. One operation more for a vector.
  template <class Meaning>
  static Pair nibbles(const char* p, const Meaning& meaning) {
    const auto eight = [&](const char* from) {
      return meaning.template code<0>(spread(Meaning::prepare(broadcast(from))));
    };
    return {eight(p), eight(p + 4)};
  }

  // 32 bytes, a word of 8 codes in each lane; vector J holds code J of every word.
  template <class Meaning>
  struct Words {
    __m256i line;
    Meaning meaning;
    Words(const char* p, const Meaning& meaning)
        : line(Meaning::prepare(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))), meaning(meaning) {}
    template <int J>
    F vector() const {
      return meaning.template code<J>(line);
    }
  };

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

  // G scales from the first on, each in 8 / G lanes.
  template <ScaleType T, int G>
  static F scales(const char* first) {
    if constexpr (G == 1) return scale<T>(first, 0);
    return halves<G>(_mm256_castps256_ps128(scale<T>(first, 0)), _mm256_castps256_ps128(scale<T>(first, 1)));
  }
  template <int G>
  static F zeros(const uint8_t* first) {
    const auto zero = [&](int i) { return _mm_set1_ps(static_cast<float>(first[i] & 15)); };
    return halves<G>(zero(0), zero(G - 1));
  }

 private:
  template <int G>
  static F halves(__m128 low, __m128 high) {
    static_assert(G <= 2);
    return _mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1);
  }
  static F widen_int8(const char* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static __m256i broadcast(const char* p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return _mm256_set1_epi32(word);
  }
  // Code i of a word in the lowest bits of lane i, with others above.
  static __m256i spread(__m256i word) {
    return _mm256_srlv_epi32(word, _mm256_set_epi32(28, 24, 20, 16, 12, 8, 4, 0));
  }
};

}  // namespace
}  // namespace moerun::cpu
