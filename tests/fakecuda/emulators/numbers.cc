#include "tests/fakecuda/emulators/numbers.h"

#include <cstring>
#include <stdexcept>

#include "cpu/kernels/number_formats_inl.h"

namespace fakecuda {

using moerun::DType;

moerun::WeightFormat weight_format_of(const std::string& name) {
  for (int i = 0; i < moerun::kWeightFormats; ++i)
    if (name == moerun::kFormatInfo[i].name) return static_cast<moerun::WeightFormat>(i);
  throw std::invalid_argument("no format " + name);
}

DType dtype_of(const std::string& name) {
  for (const DType type : {DType::f32, DType::f16, DType::bf16})
    if (name == moerun::name_of(type)) return type;
  throw std::invalid_argument("no dtype " + name);
}

std::vector<float> widen(const std::byte* data, DType type, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  if (count == 0) return values;  // of an empty part of a sum; no memcpy from or to null
  if (type == DType::f32) {
    std::memcpy(values.data(), data, values.size() * sizeof(float));
    return values;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t half = 0;
    std::memcpy(&half, data + 2 * i, sizeof(half));
    values[i] = type == DType::f16 ? moerun::cpu::from_f16(half) : moerun::cpu::from_bf16(half);
  }
  return values;
}

void narrow(const std::vector<float>& values, DType type, std::byte* data) {
  if (values.empty()) return;
  if (type == DType::f32) {
    std::memcpy(data, values.data(), values.size() * sizeof(float));
    return;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t half =
        type == DType::f16 ? moerun::cpu::to_f16(values[i]) : moerun::cpu::to_bf16(values[i]);
    std::memcpy(data + 2 * i, &half, sizeof(half));
  }
}

float rounded(float value, DType type) {
  if (type == DType::f32) return value;
  return type == DType::f16 ? moerun::cpu::from_f16(moerun::cpu::to_f16(value))
                            : moerun::cpu::from_bf16(moerun::cpu::to_bf16(value));
}

}  // namespace fakecuda
