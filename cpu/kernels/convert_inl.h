// Conversions between the three float formats, rounding to nearest even. Included after a Simd.
#pragma once
#include <cstdint>

#include "src/types.h"

namespace moerun::cpu {
namespace {

template <DType From, DType To>
void convert_from_to(const void* from, void* to, int64_t n) {
  const char* in = static_cast<const char*>(from);
  char* out = static_cast<char*>(to);
  int64_t i = 0;
  for (; i + Simd::lanes <= n; i += Simd::lanes)
    Simd::store_as<To>(out + i * size_of(To), Simd::load_as<From>(in + i * size_of(From)));
  if (i < n) {
    const int left = static_cast<int>(n - i);
    Simd::store_as<To>(out + i * size_of(To), Simd::load_as<From>(in + i * size_of(From), left), left);
  }
}

template <DType From>
void convert_from(const void* from, void* to, DType to_type, int64_t n) {
  switch (to_type) {
    case DType::f32:
      return convert_from_to<From, DType::f32>(from, to, n);
    case DType::f16:
      return convert_from_to<From, DType::f16>(from, to, n);
    case DType::bf16:
      return convert_from_to<From, DType::bf16>(from, to, n);
  }
}

inline void convert(const void* from, DType from_type, void* to, DType to_type, int64_t n) {
  switch (from_type) {
    case DType::f32:
      return convert_from<DType::f32>(from, to, to_type, n);
    case DType::f16:
      return convert_from<DType::f16>(from, to, to_type, n);
    case DType::bf16:
      return convert_from<DType::bf16>(from, to, to_type, n);
  }
}

}  // namespace
}  // namespace moerun::cpu
