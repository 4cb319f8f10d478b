// Rows of 4-bit codes become rows of unsigned bytes and fp32 scales, what cpu/kernels/staged_int8_dot_inl.h
// multiplies. Included after a Simd.
//
// A byte is code - zero + 128, or 128 + 2 value of an e2m1 code, whose scale is halved. Per 64 codes a load
// that widens bytes to words, a shift, one VPTERNLOG that leaves a code in each byte, an addition or a
// look-up, and a store.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "cpu/kernels/coded_row_inl.h"
#include "cpu/kernels/rows_inl.h"
#include "src/types.h"

namespace moerun::cpu {
namespace {

// 2^(exponent - 127); an exponent of 0 is subnormal in fp32
inline Simd::F powers_of_two(__m512i exponents) {
  return Simd::from_bits(_mm512_max_epi32(_mm512_slli_epi32(exponents, 23), _mm512_set1_epi32(0x400000)));
}

// 128 + 2 value by e2m1 code, for each lane of VPSHUFB
inline __m512i bytes_of_e2m1() {
  return _mm512_broadcast_i32x4(_mm_setr_epi8(-128, -127, -126, -125, -124, -122, -120, -116,  //
                                              -128, 127, 126, 125, 124, 122, 120, 116));
}

// What makes bytes of the 64 codes from k on: 128 - zero, of each code's group.
template <WeightFormat W>
inline __m512i byte_offsets(const CodedRow& row, int64_t k) {
  constexpr const FormatInfo& format = info(W);
  if constexpr (!format.zeros) return _mm512_set1_epi8(128 - 8);
  const uint8_t* zeros = row.zeros + k / format.group;
  const __m512i base = _mm512_set1_epi8(-128);
  const __m512i first = _mm512_set1_epi8(static_cast<char>(zeros[0]));
  if constexpr (format.group >= 64) return _mm512_sub_epi8(base, first);
  const __m512i second = _mm512_set1_epi8(static_cast<char>(zeros[1]));
  return _mm512_sub_epi8(base, _mm512_mask_mov_epi64(first, 0xf0, second));
}

// `to` has room for whole 128 bytes, which rows of codes are filled up to.
template <WeightFormat W>
inline void nibbles_to_bytes(const CodedRow& row, int64_t k_count, char* to) {
  const __m512i low_halves = _mm512_set1_epi8(15);
  const char *from = row.codes, *const end = from + (k_count + 127) / 128 * 64;
  for (int64_t k = 0; from != end; k += 128)
#pragma GCC unroll 2
    for (int64_t i = 0; i < 128; i += 64, from += 32, to += 64) {
      const __m512i pairs = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
      // (pairs | pairs << 4) & low_halves: the even k in the lower byte
      const __m512i codes = _mm512_ternarylogic_epi32(pairs, _mm512_slli_epi16(pairs, 4), low_halves, 0xa8);
      const __m512i bytes = W == WeightFormat::mxfp4 ? _mm512_shuffle_epi8(bytes_of_e2m1(), codes)
                                                     : _mm512_add_epi8(codes, byte_offsets<W>(row, k + i));
      _mm512_storeu_si512(to, bytes);
    }
}

// Scales of 16 groups in order of K, of which only `present` are read.
template <WeightFormat W>
inline Simd::F group_scales(const char* from, __mmask16 present) {
  if constexpr (info(W).scale == ScaleType::e8m0) {
    const __m512i exponents = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(present, from));
    return _mm512_mul_ps(powers_of_two(exponents), _mm512_set1_ps(0.5f));
  } else {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(present, from));
  }
}

// For each block of K the scale of its group; up to 15 more are written.
template <WeightFormat W, int Block>
inline void scales_of_blocks(const CodedRow& row, int64_t k_count, float* to) {
  constexpr const FormatInfo& format = info(W);
  constexpr int64_t blocks = format.group / Block, step = 16 / blocks;  // blocks of a group; groups at a time
  static_assert(blocks == 1 || blocks == 2);
  const __m512i twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
  const char* from = row.scales;
  for (int64_t left = (k_count + format.group - 1) / format.group; left > 0; left -= step, to += 16) {
    const auto present = static_cast<__mmask16>((1u << smaller(step, left)) - 1);
    Simd::F scales = group_scales<W>(from, present);
    if constexpr (blocks == 2) scales = _mm512_permutexvar_ps(twice, scales);
    _mm512_storeu_ps(to, scales);
    from += step * size_of(format.scale);
  }
}

}  // namespace
}  // namespace moerun::cpu
