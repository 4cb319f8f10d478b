// Vectors of 16 floats with AVX-512 F, BW, VL and DQ: the operations that the kernel templates of cpu/kernels
// need. Included by cpu/avx512/kernels.cc and, with more on top, by cpu/avx512_bf16/kernels.cc.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "src/types.h"

namespace moerun::cpu {
namespace {

struct Simd {
  using F = __m512;
  using I = __m512i;
  static constexpr int lanes = 16;
  // Rows of a tile of 1, 2, ... vectors: at most 24 accumulators, which leaves 8 registers for operands.
  static constexpr int tile_vectors = 4;
  static constexpr int tile_rows[tile_vectors] = {8, 8, 8, 6};

  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float v) { return _mm512_set1_ps(v); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static void store(float* p, F v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }

  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fmadd(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }  // b if either is NaN, as in SSE
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static float sum(F a) { return _mm512_reduce_add_ps(a); }
  // 2^n for integral n in [-126, 127]
  static F exp2_integral(F n) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
  }

  static I bits(F a) { return _mm512_castps_si512(a); }
  static F from_bits(I a) { return _mm512_castsi512_ps(a); }
  static I shift_right_16(I a) { return _mm512_srli_epi32(a, 16); }
  static I bit_or(I a, I b) { return _mm512_or_si512(a, b); }

  // 16 numbers of type T, as floats
  template <DType T>
  static F load_as(const void* p) {
    if constexpr (T == DType::f32) return _mm512_loadu_ps(p);
    if constexpr (T == DType::f16) return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
    if constexpr (T == DType::bf16) return widen_bf16(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  }
  template <DType T>
  static F load_as(const void* p, int n) {
    if constexpr (T == DType::f32) return _mm512_maskz_loadu_ps(first(n), p);
    if constexpr (T == DType::f16) return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p));
    if constexpr (T == DType::bf16) return widen_bf16(_mm256_maskz_loadu_epi16(first(n), p));
  }
  // p[0], p[2], ... p[30]; reads nothing beyond p[30]
  template <DType T>
  static F load_alternate(const void* p) {
    if constexpr (T == DType::f32) {
      const float* f = static_cast<const float*>(p);
      const I pick = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 14, 12, 10, 8, 6, 4, 2, 0);
      return _mm512_permutex2var_ps(_mm512_loadu_ps(f), pick, _mm512_loadu_ps(f + 15));
    } else {
      const __m512i pairs = _mm512_maskz_loadu_epi16(0x7fffffff, p);
      const __m256i even = _mm512_cvtepi32_epi16(pairs);
      if constexpr (T == DType::f16) return _mm512_cvtph_ps(even);
      return widen_bf16(even);
    }
  }
  template <DType T>
  static void store_as(void* p, F v) {
    if constexpr (T == DType::f32) _mm512_storeu_ps(p, v);
    if constexpr (T == DType::f16)
      _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    if constexpr (T == DType::bf16) _mm256_storeu_si256(static_cast<__m256i*>(p), narrow_bf16(v));
  }
  template <DType T>
  static void store_as(void* p, F v, int n) {
    if constexpr (T == DType::f32) _mm512_mask_storeu_ps(p, first(n), v);
    if constexpr (T == DType::f16)
      _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    if constexpr (T == DType::bf16) _mm256_mask_storeu_epi16(p, first(n), narrow_bf16(v));
  }

  // Transposes a 16 x 16 block of 32-bit elements held in 16 registers: 64 shuffles.
  static void transpose(F (&r)[16]) {
    I t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_epi32(bits(r[i]), bits(r[i + 1]));
      t[i + 1] = _mm512_unpackhi_epi32(bits(r[i]), bits(r[i + 1]));
    }
    I u[16];
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      u[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
      u[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
      u[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
      u[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const I a = _mm512_shuffle_i32x4(u[i], u[4 + i], 0x88), b = _mm512_shuffle_i32x4(u[i], u[4 + i], 0xdd);
      const I c = _mm512_shuffle_i32x4(u[8 + i], u[12 + i], 0x88);
      const I d = _mm512_shuffle_i32x4(u[8 + i], u[12 + i], 0xdd);
      r[i] = from_bits(_mm512_shuffle_i32x4(a, c, 0x88));
      r[4 + i] = from_bits(_mm512_shuffle_i32x4(b, d, 0x88));
      r[8 + i] = from_bits(_mm512_shuffle_i32x4(a, c, 0xdd));
      r[12 + i] = from_bits(_mm512_shuffle_i32x4(b, d, 0xdd));
    }
  }

  // To the nearest bf16, to even, still as fp32; a NaN stays a NaN.
  static F rounded_to_bf16(F v) {
    const I b = bits(v);
    const I odd = _mm512_and_si512(_mm512_srli_epi32(b, 16), _mm512_set1_epi32(1));
    const I rounded = _mm512_add_epi32(_mm512_add_epi32(b, _mm512_set1_epi32(0x7fff)), odd);
    const I quiet = _mm512_or_si512(b, _mm512_set1_epi32(0x400000));
    const I chosen = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), quiet);
    return from_bits(_mm512_and_si512(chosen, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
  }

 private:
  static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static F widen_bf16(__m256i v) { return from_bits(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
  static __m256i narrow_bf16(F v) {
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits(rounded_to_bf16(v)), 16));
  }
};

}  // namespace
}  // namespace moerun::cpu
