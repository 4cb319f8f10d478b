// Quantised weights meet bf16 activations: codes become bf16 exactly, VDPBF16PS multiplies them, and the sums
// of a group are scaled in fp32. Dots as described in cpu/kernels/f32_dot_inl.h; int8 has its own
// (cpu/kernels/int8_dot_inl.h). Many tokens meet 4-bit codes as int8 (cpu/kernels/staged_int8_dot_inl.h).
//
// Row by row, a block is 128 codes:
//   4 bits   one cache line of 32 words of 4 codes. VPERMW looks up 32 values by the low five bits of words;
//            a table of 32 with every value twice makes masking the neighbour's bit needless. Look-up j gives
//            the codes 4 w + j, so activations are arranged in this order once a call. Every lane holds 8
//            codes of one group: one fused multiply-add with a vector of scales serves the line. 16 to 18
//            instructions.
//   e4m3     the exponent is rebiased by an addition; subnormals come from a table of 8. 9 operations per 32.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/avx512/nibble_bytes.h"
#include "cpu/avx512_bf16/bf16_dot.h"
#include "cpu/avx512_vnni/integers.h"
// after Simd and Integers
#include "cpu/kernels/coded_row_inl.h"
#include "cpu/kernels/staged_int8_dot_inl.h"
#include "src/types.h"

namespace moerun::cpu {
namespace {

template <WeightFormat W>
struct CodedDot {
  static constexpr const FormatInfo& format = info(W);
  using X = uint16_t;
  using Tiles = std::conditional_t<format.bits == 4, StagedInt8Dot<staged_block(format), 4>, Bf16Dot>;
  using RowX = X;
  using Vec = Simd::F;
  using Acc = Simd::F;
  using Row = CodedRow;
  static constexpr bool scaled = true;
  static constexpr bool arranged = format.bits == 4;
  static constexpr int block = 128;
  static constexpr int64_t block_bytes = block * format.bits / 8;
  static constexpr DType activation_type = DType::bf16;
  static constexpr int step = 32;
  static constexpr int64_t step_bytes = step * format.bits / 8;
  static constexpr int group = 2;
  static constexpr bool in_place = false;

  static int64_t row_bytes(const MatrixView& m) { return coded_row_bytes<W>(m); }
  static Row row(const MatrixView& m, int64_t n) { return coded_row<W>(m, n); }
  static const char* address(const Row& r, int64_t k) { return r.codes + k * format.bits / 8; }
  static Vec activations(const X* x) { return Bf16Dot::activations(x); }
  static void store(X* to, Vec v) { Bf16Dot::store(to, v); }
  static Vec join_rounded(Simd::F k0, Simd::F k1) { return Bf16Dot::join_rounded(k0, k1); }
  static Acc multiply_add(Vec a, Vec b, Acc c) { return Bf16Dot::multiply_add(a, b, c); }

  // Activations in the order of the look-ups: [block][4][32] bf16; where codes have a zero point, then the
  // sum of each lane's activations, [16] fp32, which is subtracted that often.
  static constexpr int64_t kArranged = block + (format.zeros ? 32 : 0);  // RowX of a block
  static int64_t arranged_size(int64_t k_count) { return (k_count + block - 1) / block * kArranged; }
  static void arrange(const X* x, int64_t k_count, RowX* to) {
    for (int64_t k = 0; k < k_count; k += block, to += kArranged) {
      const auto load = [&](int i) {  // zeros from the first multiple of 64 beyond K on
        return k + 64 * (i / 2) < k_count ? _mm512_loadu_si512(x + k + 32 * i) : _mm512_setzero_si512();
      };
      const __m512i a = load(0), b = load(1), c = load(2), d = load(3);
      Simd::F sum = Simd::zero();
      for (int j = 0; j < 4; ++j) {
        const __m512i pick = _mm512_load_si512(kEveryFourth.value[j]);
        const __m512i low = _mm512_permutex2var_epi16(a, pick, b),
                      high = _mm512_permutex2var_epi16(c, pick, d);
        const __m512i words = _mm512_inserti64x4(low, _mm512_castsi512_si256(high), 1);
        _mm512_storeu_si512(to + 32 * j, words);
        if constexpr (format.zeros) sum = multiply_add(Simd::from_bits(words), ones(), sum);
      }
      if constexpr (format.zeros) std::memcpy(to + block, &sum, sizeof(sum));
    }
  }

  // sum[m] += codes * scales * x[m] for 128 elements of K from k on
  template <int M>
  static void add_block(const Row& r, int64_t k, const RowX* const* x, Acc (&sum)[M]) {
    if constexpr (format.bits == 4) {
      const __m512i line = _mm512_loadu_si512(address(r, k)), values = values_of_codes();
      const Vec four[4] = {look_up(line, values), look_up(_mm512_srli_epi16(line, 4), values),
                           look_up(_mm512_srli_epi16(line, 8), values),
                           look_up(_mm512_srli_epi16(line, 12), values)};
      const Simd::F scale = block_scales(r, k);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        const RowX* xm = x[m] + k / block * kArranged;
        Acc products = Simd::zero();
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) products = multiply_add(four[j], activations(xm + 32 * j), products);
        if constexpr (format.zeros)
          products = _mm512_fnmadd_ps(block_zeros(r, k), _mm512_loadu_ps(xm + block), products);
        sum[m] = Simd::fmadd(products, scale, sum[m]);
      }
    } else {
      Acc products[M];
      for (auto& p : products) p = Simd::zero();
      for (int i = 0; i < block && k + i < r.filled; i += step) {
        const Vec c = codes(r, k + i);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) products[m] = multiply_add(c, activations(x[m] + k + i), products[m]);
      }
      const Simd::F s = scale(r, k);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) sum[m] = Simd::fmadd(products[m], s, sum[m]);
    }
  }
  static float row_scale(const Row&) { return 1.0f; }

  // 32 codes as bf16, in order, before scaling
  static Vec codes(const Row& r, int64_t k) {
    const char* from = address(r, k);
    if constexpr (format.bits == 4) {
      const __m512i byte = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
      const __m512i words = _mm512_or_si512(byte, _mm512_slli_epi32(byte, 12));  // odd k in bits 16-19
      return look_up(words, table(r, k));
    }
    return from_e4m3(from);
  }

  static Simd::F scale(const Row& r, int64_t k) {
    const int64_t i = k / format.group;
    if constexpr (format.scale == ScaleType::f32)
      return _mm512_set1_ps(reinterpret_cast<const float*>(r.scales)[i]);
    if constexpr (format.scale == ScaleType::f16) {
      uint16_t half;
      std::memcpy(&half, r.scales + 2 * i, 2);
      return _mm512_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
    }
    return powers_of_two(_mm512_set1_epi32(static_cast<uint8_t>(r.scales[i])));
  }

  // A row of 4-bit codes for integer tiles
  static void stage(const Row& r, int64_t k_count, char* bytes, float* scales) {
    nibbles_to_bytes<W>(r, k_count, bytes);
    scales_of_blocks<W, staged_block(format)>(r, k_count, scales);
  }

  // 32 weights, scaled and rounded to bf16: what is staged for tiles of bf16
  static Vec weights(const Row& r, int64_t k) {
    const __m512i c = _mm512_castps_si512(codes(r, k));
    const Simd::F s = scale(r, k);
    const __m512i low = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(c)), 16);
    const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(c, 1)), 16);
    return join(_mm512_mul_ps(_mm512_castsi512_ps(low), s), _mm512_mul_ps(_mm512_castsi512_ps(high), s));
  }
  static Vec weights(const Row& r, int64_t k, int) { return weights(r, k); }  // rows are filled up with zeros

 private:
  static Vec join(Simd::F low, Simd::F high) {
    return Simd::from_bits((__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
  static Vec ones() { return Simd::from_bits(_mm512_set1_epi16(0x3f80)); }

  // What belongs to lane i of a block: that of codes 8 i .. 8 i + 7.
  static constexpr int kGroups = block / format.group;
  static Simd::F spread_groups(Simd::F by_group) {
    if constexpr (kGroups == 1) return _mm512_broadcastss_ps(_mm512_castps512_ps128(by_group));
    const __m512i two = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512i four = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    return _mm512_permutexvar_ps(kGroups == 2 ? two : four, by_group);
  }
  static Simd::F block_scales(const Row& r, int64_t k) {
    const char* from = r.scales + k / format.group * size_of(format.scale);
    uint64_t raw = 0;
    std::memcpy(&raw, from, kGroups * size_of(format.scale));
    const __m128i groups = _mm_cvtsi64_si128(static_cast<int64_t>(raw));
    if constexpr (format.scale == ScaleType::e8m0)
      return powers_of_two(
          Simd::bits(spread_groups(Simd::from_bits(_mm512_castsi128_si512(_mm_cvtepu8_epi32(groups))))));
    return spread_groups(_mm512_castps128_ps512(_mm_cvtph_ps(groups)));
  }
  static Simd::F block_zeros(const Row& r, int64_t k) {
    uint32_t raw = 0;
    std::memcpy(&raw, r.zeros + k / format.group, kGroups);
    const __m128 zeros = _mm_cvtepi32_ps(_mm_cvtepu8_epi32(_mm_cvtsi32_si128(static_cast<int>(raw))));
    return spread_groups(_mm512_castps128_ps512(zeros));
  }

  // What the 16 codes mean, as bf16, twice.
  static __m512i values_of_codes() {
    if constexpr (W == WeightFormat::mxfp4) return _mm512_load_si512(kE2m1.value[0]);
    return _mm512_load_si512(kMinusZero.value[format.zeros ? 0 : 8]);
  }
  static __m512i table(const Row& r, int64_t k) {
    if constexpr (format.zeros) return _mm512_load_si512(kMinusZero.value[r.zeros[k / format.group] & 15]);
    return values_of_codes();
  }
  static Vec look_up(__m512i words, __m512i values) {
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
  static constexpr Tables<4> kEveryFourth = [] {  // elements j, 4 + j, ... of two vectors
    Tables<4> t{};
    for (int j = 0; j < 4; ++j)
      for (int i = 0; i < 32; ++i) t.value[j][i] = static_cast<uint16_t>((4 * i + j) % 64);
    return t;
  }();
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
