// The value of one weight of a matrix, in any format: the formulas of src/types.h, one element at a time.
#pragma once
#include <cstdint>
#include <cstring>

#include "cpu/kernels/number_formats_inl.h"
#include "src/types.h"

namespace moerun::cpu {
namespace {

inline float load_scale(const void* scales, ScaleType type, int64_t i) {
  switch (type) {
    case ScaleType::f32:
      return static_cast<const float*>(scales)[i];
    case ScaleType::f16:
      return from_f16(static_cast<const uint16_t*>(scales)[i]);
    case ScaleType::e8m0:
      return from_e8m0(static_cast<const uint8_t*>(scales)[i]);
    case ScaleType::none:
      break;
  }
  return 1.0f;
}

inline float plain_value(const MatrixView& m, DType type, int64_t i) {
  // Weights in a mapped file need not be aligned.
  const char* from = static_cast<const char*>(m.data) + i * size_of(type);
  if (type == DType::f32) {
    float single;
    std::memcpy(&single, from, sizeof(single));
    return single;
  }
  uint16_t half;
  std::memcpy(&half, from, sizeof(half));
  return type == DType::f16 ? from_f16(half) : from_bf16(half);
}

template <WeightFormat W>
float weight_value(const MatrixView& m, int64_t row, int64_t k) {
  constexpr const FormatInfo& format = info(W);
  const int64_t i = row * m.row_stride + k * m.col_stride;
  if constexpr (!is_quantised(W)) {
    return plain_value(m, static_cast<DType>(W), i);
  } else {
    const int64_t s = row / format.block_rows * m.scale_stride + (format.group ? k / format.group : 0);
    const float scale = load_scale(m.scales, format.scale, s);
    const auto* codes = static_cast<const uint8_t*>(m.data);
    const int code = format.bits == 8 ? codes[i] : (codes[i / 2] >> (i % 2 * 4)) & 15;
    if constexpr (W == WeightFormat::fp8_b128) return from_e4m3(code) * scale;
    if constexpr (W == WeightFormat::mxfp4) return from_e2m1(code) * scale;
    if constexpr (format.bits == 8) return static_cast<float>(static_cast<int8_t>(code)) * scale;
    return static_cast<float>(code - (format.zeros ? m.zeros[s] : 8)) * scale;
  }
}

}  // namespace
}  // namespace moerun::cpu
