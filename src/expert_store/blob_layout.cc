#include "src/expert_store/blob_layout.h"

#include <string>

#include "src/error.h"

namespace moerun {
namespace {

constexpr int64_t kReadAhead = 64;                  // bytes that may be read behind the last element
constexpr int64_t kLargestSize = int64_t{1} << 28;  // of H and I: products stay far from overflow

constexpr int64_t ceil_div(int64_t n, int64_t d) {
  return (n + d - 1) / d;
}
constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return ceil_div(n, multiple) * multiple;
}

// Lays sections one after the other.
struct Cursor {
  int64_t at = 0;
  int64_t take(int64_t bytes) {
    const int64_t begin = at;
    at = round_up(at + bytes, kSectionAlignment);
    return begin;
  }
};

// `parts` matrices of `rows` rows each, one below the other.
BlobMatrix place(Cursor& cursor, const FormatInfo& format, int64_t parts, int64_t rows, int64_t columns) {
  BlobMatrix m{.rows = parts * rows, .columns = columns};
  m.row_bytes = round_up(ceil_div(columns * format.bits, 8), kSectionAlignment);
  m.row_stride = m.row_bytes * 8 / format.bits;
  m.codes = cursor.take(m.rows * m.row_bytes);
  if (format.scale == ScaleType::none) return m;
  m.scale_stride = format.group ? ceil_div(m.row_stride, format.group) : 1;
  m.scale_rows = parts * ceil_div(rows, format.block_rows);
  m.scales = cursor.take(m.scale_rows * m.scale_stride * size_of(format.scale));
  if (format.zeros) m.zeros = cursor.take(m.scale_rows * m.scale_stride);
  return m;
}

MatrixView view(const BlobMatrix& m, const FormatInfo& format, const std::byte* blob, int64_t row,
                int64_t scale_row) {
  MatrixView v{.data = blob + m.codes + row * m.row_bytes, .row_stride = m.row_stride};
  if (format.scale == ScaleType::none) return v;
  v.scale_stride = m.scale_stride;
  v.scales = blob + m.scales + scale_row * m.scale_stride * size_of(format.scale);
  if (format.zeros) v.zeros = reinterpret_cast<const uint8_t*>(blob + m.zeros) + scale_row * m.scale_stride;
  return v;
}

int64_t matrix_bytes(const FormatInfo& format, int64_t rows, int64_t columns) {
  const int64_t scales =
      ceil_div(rows, format.block_rows) * (format.group ? ceil_div(columns, format.group) : 1);
  return ceil_div(rows * columns * format.bits, 8) + scales * (size_of(format.scale) + format.zeros);
}

}  // namespace

BlobLayout blob_layout(WeightFormat format, int64_t hidden, int64_t inter, bool bias) {
  if (hidden < 1 || inter < 1 || hidden > kLargestSize || inter > kLargestSize)
    throw InvalidArgument("an expert of " + std::to_string(inter) + " x " + std::to_string(hidden) +
                          " cannot be laid out; sizes go from 1 to " + std::to_string(kLargestSize));
  Cursor cursor;
  BlobLayout layout{.format = format, .bias = bias};
  layout.gate_up = place(cursor, info(format), 2, inter, hidden);
  layout.down = place(cursor, info(format), 1, hidden, inter);
  if (bias) {
    layout.gate_up_bias = cursor.take(2 * inter * int64_t{sizeof(float)});
    layout.down_bias = cursor.take(hidden * int64_t{sizeof(float)});
  }
  layout.bytes = round_up(cursor.at + kReadAhead, kBlobAlignment);
  return layout;
}

ExpertView expert_view(const BlobLayout& layout, const std::byte* blob) {
  const FormatInfo& format = info(layout.format);
  const int64_t inter = layout.down.columns;
  ExpertView e{.gate = view(layout.gate_up, format, blob, 0, 0),
               .up = view(layout.gate_up, format, blob, inter, layout.gate_up.scale_rows / 2),
               .down = view(layout.down, format, blob, 0, 0)};
  if (layout.bias) {
    e.gate_bias = reinterpret_cast<const float*>(blob + layout.gate_up_bias);
    e.up_bias = e.gate_bias + inter;
    e.down_bias = reinterpret_cast<const float*>(blob + layout.down_bias);
  }
  return e;
}

MatrixLayout matrix_layout(WeightFormat format, int64_t rows, int64_t columns) {
  if (rows < 1 || columns < 1 || rows > kLargestSize || columns > kLargestSize)
    throw InvalidArgument("a matrix of " + std::to_string(rows) + " x " + std::to_string(columns) +
                          " cannot be laid out; sizes go from 1 to " + std::to_string(kLargestSize));
  Cursor cursor;
  MatrixLayout layout{.format = format, .matrix = place(cursor, info(format), 1, rows, columns)};
  layout.bytes = round_up(cursor.at + kReadAhead, kBlobAlignment);
  return layout;
}

MatrixView matrix_view(const MatrixLayout& layout, const std::byte* blob) {
  return view(layout.matrix, info(layout.format), blob, 0, 0);
}

int64_t weight_bytes(WeightFormat format, int64_t hidden, int64_t inter) {
  return 2 * matrix_bytes(info(format), inter, hidden) + matrix_bytes(info(format), hidden, inter);
}

}  // namespace moerun
