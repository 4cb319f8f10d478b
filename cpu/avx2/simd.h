// Vectors of 8 floats with AVX2, FMA and F16C: the operations that the kernel templates of cpu/kernels need.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "src/types.h"

namespace moerun::cpu {
namespace {

struct Simd {
  using F = __m256;
  using I = __m256i;
  static constexpr int lanes = 8;
  // Rows of a tile of 1, 2, ... vectors: at most 12 accumulators of the 16 registers.
  static constexpr int tile_vectors = 3;
  static constexpr int tile_rows[tile_vectors] = {8, 6, 4};

  static F zero() { return _mm256_setzero_ps(); }
  static F set1(float v) { return _mm256_set1_ps(v); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static F load(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static void store(float* p, F v, int n) { _mm256_maskstore_ps(p, first(n), v); }

  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fmadd(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }  // b if either is NaN, as in SSE
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static float sum(F a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  // 2^n for integral n in [-126, 127]
  static F exp2_integral(F n) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
  }

  static I bits(F a) { return _mm256_castps_si256(a); }
  static F from_bits(I a) { return _mm256_castsi256_ps(a); }
  static I bit_or(I a, I b) { return _mm256_or_si256(a, b); }

  // 8 numbers of type T, as floats
  template <DType T>
  static F load_as(const void* p) {
    if constexpr (T == DType::f32) return _mm256_loadu_ps(static_cast<const float*>(p));
    if constexpr (T == DType::f16) return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    if constexpr (T == DType::bf16) return widen_bf16(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  template <DType T>
  static F load_as(const void* p, int n) {
    if constexpr (T == DType::f32) {
      return _mm256_maskload_ps(static_cast<const float*>(p), first(n));
    } else {
      uint16_t padded[8] = {};
      std::memcpy(padded, p, n * sizeof(uint16_t));
      return load_as<T>(padded);
    }
  }
  // p[0], p[2], ... p[14]; reads nothing beyond p[14]
  template <DType T>
  static F load_alternate(const void* p) {
    if constexpr (T == DType::f32) {
      const float* f = static_cast<const float*>(p);
      const F mixed = _mm256_shuffle_ps(_mm256_loadu_ps(f), _mm256_loadu_ps(f + 7), _MM_SHUFFLE(3, 1, 2, 0));
      return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(mixed), _MM_SHUFFLE(3, 1, 2, 0)));
    } else {
      const uint16_t* h = static_cast<const uint16_t*>(p);
      const __m128i even = _mm_set_epi8(-1, -1, -1, -1, -1, -1, -1, -1, 13, 12, 9, 8, 5, 4, 1, 0);
      const __m128i odd = _mm_set_epi8(15, 14, 11, 10, 7, 6, 3, 2, -1, -1, -1, -1, -1, -1, -1, -1);
      const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(h));
      const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(h + 7));
      const __m128i eight = _mm_or_si128(_mm_shuffle_epi8(low, even), _mm_shuffle_epi8(high, odd));
      if constexpr (T == DType::f16) return _mm256_cvtph_ps(eight);
      return widen_bf16(eight);
    }
  }
  template <DType T>
  static void store_as(void* p, F v) {
    if constexpr (T == DType::f32) _mm256_storeu_ps(static_cast<float*>(p), v);
    if constexpr (T == DType::f16)
      _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    if constexpr (T == DType::bf16) _mm_storeu_si128(static_cast<__m128i*>(p), narrow_bf16(v));
  }
  template <DType T>
  static void store_as(void* p, F v, int n) {
    if constexpr (T == DType::f32) {
      _mm256_maskstore_ps(static_cast<float*>(p), first(n), v);
    } else {
      uint16_t whole[8];
      store_as<T>(whole, v);
      std::memcpy(p, whole, n * sizeof(uint16_t));
    }
  }

  // Transposes an 8 x 8 block of 32-bit elements held in 8 registers: 24 shuffles.
  static void transpose(F (&r)[8]) {
    F t[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    F u[8];
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
      u[i] = _mm256_shuffle_ps(t[i], t[i + 2], _MM_SHUFFLE(1, 0, 1, 0));
      u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], _MM_SHUFFLE(3, 2, 3, 2));
      u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], _MM_SHUFFLE(1, 0, 1, 0));
      u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], _MM_SHUFFLE(3, 2, 3, 2));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      r[i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x20);
      r[4 + i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x31);
    }
  }

 private:
  static I first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
  }
  static F widen_bf16(__m128i v) { return from_bits(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16)); }
  // Rounds to nearest even; a NaN stays a NaN.
  static __m128i narrow_bf16(F v) {
    const I b = bits(v);
    const I odd = _mm256_and_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(1));
    const I rounded = _mm256_add_epi32(_mm256_add_epi32(b, _mm256_set1_epi32(0x7fff)), odd);
    const I quiet = _mm256_or_si256(b, _mm256_set1_epi32(0x400000));
    const F chosen =
        _mm256_blendv_ps(from_bits(rounded), from_bits(quiet), _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const I high = _mm256_srli_epi32(bits(chosen), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  }
};

}  // namespace
}  // namespace moerun::cpu
