// Names of dtypes and formats, and rounding to them.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

#include "src/types.h"

namespace fakecuda {

moerun::DType dtype_of(const std::string& name);
moerun::WeightFormat weight_format_of(const std::string& name);

std::vector<float> widen(const std::byte* data, moerun::DType type, int64_t count);
void narrow(const std::vector<float>& values, moerun::DType type, std::byte* data);
float rounded(float value, moerun::DType type);

}  // namespace fakecuda
