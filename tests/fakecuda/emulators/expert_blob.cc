#include "tests/fakecuda/emulators/expert_blob.h"

#include <array>
#include <utility>

#include "cpu/kernels/weight_value_inl.h"
#include "tests/fakecuda/emulators/numbers.h"

namespace fakecuda {
namespace {

using moerun::BlobMatrix;
using moerun::FormatInfo;
using moerun::MatrixView;
using moerun::WeightFormat;

using WeightValue = float (*)(const MatrixView&, int64_t row, int64_t k);

template <size_t... W>
constexpr std::array<WeightValue, sizeof...(W)> all_formats(std::index_sequence<W...>) {
  return {moerun::cpu::weight_value<static_cast<WeightFormat>(W)>...};
}
constexpr auto kWeightValues = all_formats(std::make_index_sequence<moerun::kWeightFormats>());

// Declares that the bytes are read, and returns where the blob would begin.
const std::byte* touch(const Launch& launch, uint64_t blob, int64_t offset, int64_t bytes) {
  return launch.read<std::byte>(blob + static_cast<uint64_t>(offset), bytes) - offset;
}

// Rows of `unit` bytes a scale, from the row of scales of `row` to that of `row_end - 1`.
const std::byte* touch_scales(const Launch& launch, uint64_t blob, const BlobMatrix& m, const FormatInfo& f,
                              int64_t section, int64_t unit, int64_t row, int64_t row_end) {
  const int64_t first = row / f.block_rows, last = (row_end - 1) / f.block_rows;
  const int64_t row_bytes = m.scale_stride * unit;
  return touch(launch, blob, section + first * row_bytes, (last - first + 1) * row_bytes);
}

}  // namespace

// `row` counts from `first_row`, where blocks of rows begin anew: blocks do not span gate and up.
Matrix ExpertBlob::part(const Launch& launch, const BlobMatrix& m, int64_t first_row, int64_t row,
                        int64_t row_end, int64_t k, int64_t k_end) const {
  if (row >= row_end || k >= k_end) return Matrix(static_cast<size_t>(std::max<int64_t>(0, row_end - row)));
  const FormatInfo& f = info(layout_.format);
  BlobMatrix half = m;  // from first_row on
  half.codes += first_row * m.row_bytes;
  const int64_t scale_rows = first_row / f.block_rows + (first_row % f.block_rows != 0);
  half.scales += scale_rows * m.scale_stride * size_of(f.scale);
  half.zeros += scale_rows * m.scale_stride;

  const std::byte* blob = nullptr;
  if (k == 0 && k_end == m.columns) {
    blob = touch(launch, address_, half.codes + row * m.row_bytes, (row_end - row) * m.row_bytes);
  } else {
    for (int64_t r = row; r < row_end; ++r)
      blob = touch(launch, address_, half.codes + r * m.row_bytes + k * f.bits / 8,
                   ((k_end - k) * f.bits + 7) / 8);
  }
  MatrixView view{.data = blob + half.codes, .row_stride = m.row_stride};
  if (f.scale != moerun::ScaleType::none) {
    view.scale_stride = m.scale_stride;
    view.scales =
        touch_scales(launch, address_, half, f, half.scales, size_of(f.scale), row, row_end) + half.scales;
  }
  if (f.zeros)
    view.zeros = reinterpret_cast<const uint8_t*>(
        touch_scales(launch, address_, half, f, half.zeros, 1, row, row_end) + half.zeros);

  const WeightValue value = kWeightValues[static_cast<size_t>(layout_.format)];
  Matrix rows;
  for (int64_t r = row; r < row_end; ++r) {
    std::vector<float>& values = rows.emplace_back();
    for (int64_t column = k; column < k_end; ++column)
      values.push_back(rounded(value(view, r, column), compute_));
  }
  return rows;
}

Matrix ExpertBlob::gate_up(const Launch& launch, int64_t row, int64_t row_end, int64_t k,
                           int64_t k_end) const {
  const int64_t inter = layout_.down.columns;
  const int64_t first_row = row >= inter ? inter : 0;
  return part(launch, layout_.gate_up, first_row, row - first_row, row_end - first_row, k, k_end);
}

Matrix ExpertBlob::down(const Launch& launch, int64_t row, int64_t row_end, int64_t k, int64_t k_end) const {
  return part(launch, layout_.down, 0, row, row_end, k, k_end);
}

std::vector<float> ExpertBlob::floats(const Launch& launch, int64_t offset, int64_t begin,
                                      int64_t end) const {
  const int64_t at = offset + begin * int64_t{sizeof(float)};
  const auto* const data = launch.read<float>(address_ + static_cast<uint64_t>(at), end - begin);
  return {data, data + (end - begin)};
}

std::vector<float> ExpertBlob::gate_up_bias(const Launch& launch, int64_t row, int64_t row_end) const {
  return floats(launch, layout_.gate_up_bias, row, row_end);
}

std::vector<float> ExpertBlob::down_bias(const Launch& launch, int64_t row, int64_t row_end) const {
  return floats(launch, layout_.down_bias, row, row_end);
}

}  // namespace fakecuda
