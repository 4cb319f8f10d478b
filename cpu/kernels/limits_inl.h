// What the machine can do at most: reading memory in order, and multiply-adds in registers. Included after a
// Simd.
#pragma once
#include <cstddef>
#include <cstdint>

#include "src/types.h"

namespace moerun::cpu {
namespace {

// Combines all n bytes, four vectors a step; the arithmetic hides behind the loads.
inline uint64_t read_memory(const void* data, size_t n) {
  const char* p = static_cast<const char*>(data);
  constexpr size_t width = Simd::lanes * sizeof(float);
  Simd::I sum[4] = {};
  for (size_t i = 0; i + 4 * width <= n; i += 4 * width)
    for (int j = 0; j < 4; ++j) {
      const Simd::F v = Simd::load(reinterpret_cast<const float*>(p + i + j * width));
      sum[j] = Simd::bit_or(sum[j], Simd::bits(v));
    }
  float lane[Simd::lanes];
  Simd::store(lane,
              Simd::from_bits(Simd::bit_or(Simd::bit_or(sum[0], sum[1]), Simd::bit_or(sum[2], sum[3]))));
  uint64_t result = 0;
  for (float v : lane) result = result * 31 + __builtin_bit_cast(uint32_t, v);
  return result;
}

// 16 independent chains of multiply-adds. The barrier keeps the compiler from folding the rounds.
template <class D>
inline double dot_peak(int64_t rounds, float* sink) {
  constexpr int chains = Simd::lanes == 8 ? 12 : 16;
  typename D::Acc sum[chains];
  for (auto& s : sum) s = Simd::zero();
  typename D::Vec a = Simd::zero();
  for (int64_t r = 0; r < rounds; ++r) {
    __asm__ volatile("" : "+v"(a));
#pragma GCC unroll 16
    for (int j = 0; j < chains; ++j) sum[j] = D::multiply_add(a, a, sum[j]);
  }
  for (int j = 1; j < chains; ++j) sum[0] = Simd::add(sum[0], sum[j]);
  *sink = Simd::sum(sum[0]);
  return 2.0 * rounds * chains * Simd::lanes * D::group;
}

}  // namespace
}  // namespace moerun::cpu
