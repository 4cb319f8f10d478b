// What the machine can do at most: reading memory in order, and multiply-adds in registers. Included after a
// Simd.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu/kernel_table.h"

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

// Independent chains of multiply-adds of a Dot that multiplies tiles. The barriers keep the compiler from
// folding chains or rounds.
template <class D>
inline double dot_peak(int64_t rounds, float* sink) {
  constexpr int chains = Simd::lanes == 8 ? 12 : 16;
  typename D::Sum sum[chains] = {}, a = {};
  for (auto& s : sum) __asm__ volatile("" : "+v"(s));  // or equal chains would become one
  for (int64_t r = 0; r < rounds; ++r) {
    __asm__ volatile("" : "+v"(a));
#pragma GCC unroll 16
    for (int j = 0; j < chains; ++j) sum[j] = D::multiply_add(a, a, sum[j]);
  }
  Simd::F total = Simd::zero();
  for (const auto& s : sum) total = Simd::add(total, D::to_float(s));
  *sink = Simd::sum(total);
  return 2.0 * rounds * chains * Simd::lanes * elements_in_word(D::dot_type);
}

}  // namespace
}  // namespace moerun::cpu
