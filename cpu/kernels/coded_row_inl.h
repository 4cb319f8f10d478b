// Where a row of codes, its scales and its zero points lie in a quantised matrix (see MatrixView).
#pragma once
#include <cstdint>

#include "src/types.h"

namespace moerun::cpu {
namespace {

struct CodedRow {
  const char* codes;
  const char* scales;    // of this row's first group
  const uint8_t* zeros;  // likewise, or null
  int64_t filled;        // codes in the row, with those that fill it up
};

template <WeightFormat W>
inline int64_t coded_row_bytes(const MatrixView& m) {
  return m.row_stride * info(W).bits / 8;
}

template <WeightFormat W>
inline CodedRow coded_row(const MatrixView& m, int64_t n) {
  const int64_t first = n / info(W).block_rows * m.scale_stride;
  return {static_cast<const char*>(m.data) + n * coded_row_bytes<W>(m),
          static_cast<const char*>(m.scales) + first * size_of(info(W).scale),
          m.zeros ? m.zeros + first : nullptr, m.row_stride};
}

}  // namespace
}  // namespace moerun::cpu
