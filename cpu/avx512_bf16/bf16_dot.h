// bf16 weights meet bf16 activations: VDPBF16PS multiplies pairs and adds both products to an fp32 sum.
// It treats subnormal numbers as zero. A Dot, as described in cpu/kernels/f32_dot_inl.h.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "cpu/avx512/simd.h"
#include "cpu/kernels/f32_dot_inl.h"

namespace moerun::cpu {
namespace {

struct Bf16Dot {
  using X = uint16_t;
  using Tiles = Bf16Dot;
  using RowX = X;
  using Vec = Simd::F;  // 32 bf16, or words of 16 tokens
  using Acc = Simd::F;
  using Sum = Acc;
  using Row = const char*;
  static constexpr bool scaled = false;
  static constexpr bool arranged = false;
  static constexpr DType weight_type = DType::bf16;
  static constexpr DType activation_type = DType::bf16;
  static constexpr DotType dot_type = DotType::bf16;
  static constexpr int step = 32;
  static constexpr int64_t step_bytes = 64;
  static constexpr int group = 2;
  static constexpr bool in_place = true;

  static int64_t row_bytes(const MatrixView& m) { return m.row_stride * 2; }
  static Row row(const MatrixView& m, int64_t n) { return element<DType::bf16>(m, n, 0); }
  static const char* address(Row r, int64_t k) { return r + k * 2; }
  static Vec weights(Row r, int64_t k) { return _mm512_loadu_ps(address(r, k)); }
  static Vec weights(Row r, int64_t k, int n) {
    return Simd::from_bits(_mm512_maskz_loadu_epi16((uint32_t{1} << n) - 1, address(r, k)));
  }
  static Vec activations(const X* x) { return _mm512_loadu_ps(x); }
  static Vec broadcast(const void* word) {
    float pair;
    std::memcpy(&pair, word, sizeof(pair));
    return _mm512_set1_ps(pair);
  }
  static void store(X* to, Vec v) { _mm512_storeu_ps(to, v); }
  static Simd::F to_float(Sum v) { return v; }
  static Acc multiply_add(Vec a, Vec b, Acc c) {
    return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
  static Vec join(Simd::F k0, Simd::F k1) {  // both are bf16 widened to fp32
    return Simd::from_bits(Simd::bit_or(Simd::shift_right_16(Simd::bits(k0)), Simd::bits(k1)));
  }
  static Vec join_rounded(Simd::F k0, Simd::F k1) {
    return join(Simd::rounded_to_bf16(k0), Simd::rounded_to_bf16(k1));
  }
};

}  // namespace
}  // namespace moerun::cpu
