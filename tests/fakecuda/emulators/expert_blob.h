// Reads parts of an expert's blob on the device, in any format, as floats rounded to the compute dtype.
#pragma once
#include <cstdint>
#include <vector>

#include "src/expert_store/blob_layout.h"
#include "tests/fakecuda/emulator.h"

namespace fakecuda {

using Matrix = std::vector<std::vector<float>>;  // rows

class ExpertBlob {
 public:
  ExpertBlob(const moerun::BlobLayout& layout, uint64_t address, moerun::DType compute)
      : layout_(layout), address_(address), compute_(compute) {}

  // Rows [row, row_end), columns [k, k_end). Rows of gate come first, then those of up.
  Matrix gate_up(const Launch& launch, int64_t row, int64_t row_end, int64_t k, int64_t k_end) const;
  Matrix down(const Launch& launch, int64_t row, int64_t row_end, int64_t k, int64_t k_end) const;
  std::vector<float> gate_up_bias(const Launch& launch, int64_t row, int64_t row_end) const;
  std::vector<float> down_bias(const Launch& launch, int64_t row, int64_t row_end) const;

 private:
  Matrix part(const Launch& launch, const moerun::BlobMatrix& matrix, int64_t first_row, int64_t row,
              int64_t row_end, int64_t k, int64_t k_end) const;
  std::vector<float> floats(const Launch& launch, int64_t offset, int64_t begin, int64_t end) const;

  const moerun::BlobLayout& layout_;
  uint64_t address_;
  moerun::DType compute_;
};

}  // namespace fakecuda
