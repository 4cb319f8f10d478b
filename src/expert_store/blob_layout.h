// The byte layout of an expert's blob: the one place where it is written down. Pure functions of format and
// shape; the quantiser and the readers of quantised files write blobs by it, CPU and GPU kernels and the
// copies to the GPU read them by it.
//
// One expert is one contiguous blob. It begins at a multiple of 256 bytes; every section begins at a multiple
// of 64:
//
//   gate_up codes   [2 I rows][gate_up.row_bytes]     gate's rows, then up's
//   gate_up scales  [scale rows][gate_up.scale_stride]  quantised formats: gate's, then up's
//   gate_up zeros   [2 I][gate_up.scale_stride] bytes   formats with zero points
//   down codes      [H rows][down.row_bytes]
//   down scales, down zeros                           likewise
//   gate_up bias    [2 I] fp32                        families with biases: gate's, then up's
//   down bias       [H] fp32
//   at least 64 bytes of zeros, up to a multiple of 256
//
// A row holds K codes in order (two 4-bit codes a byte, the even k in the low half), filled up to a multiple
// of 64 bytes with weights that are 0: by their code (8 in symmetric int4, the zero point, else 0), or in
// groups without any real weight by a scale of 0. A row of scales covers the filled row. The last group may
// be short. A scale row serves block_rows rows (128 in fp8, else 1); blocks do not span gate and up. The
// zeros at the end let a kernel load 64 bytes from any element on.
#pragma once
#include <cstddef>
#include <cstdint>

#include "src/types.h"

namespace moerun {

constexpr int64_t kBlobAlignment = 256;    // bytes
constexpr int64_t kSectionAlignment = 64;  // bytes; also of rows of codes

// One of the two weight sections with its scales and zeros. Offsets are bytes from the blob's start.
struct BlobMatrix {
  int64_t rows = 0, columns = 0;
  int64_t row_bytes = 0;     // of codes, from row to row
  int64_t row_stride = 0;    // the same in elements
  int64_t scale_stride = 0;  // scales from row to row; 0 if there are none
  int64_t scale_rows = 0;
  int64_t codes = 0, scales = 0, zeros = 0;
};

struct BlobLayout {
  WeightFormat format = WeightFormat::f32;
  bool bias = false;
  BlobMatrix gate_up, down;  // [2I, H], [H, I]
  int64_t gate_up_bias = 0, down_bias = 0;
  int64_t bytes = 0;  // of the whole blob, a multiple of kBlobAlignment
};

// Throws InvalidArgument if a size is not positive or too large.
BlobLayout blob_layout(WeightFormat format, int64_t hidden, int64_t inter, bool bias);

// Where gate, up, down and the biases lie in a blob that begins at `blob`.
ExpertView expert_view(const BlobLayout& layout, const std::byte* blob);

// A dense layer's matrix by itself: one section, and zeros behind it as in an expert's blob.
struct MatrixLayout {
  WeightFormat format = WeightFormat::f32;
  BlobMatrix matrix;
  int64_t bytes = 0;
};
MatrixLayout matrix_layout(WeightFormat format, int64_t rows, int64_t columns);
MatrixView matrix_view(const MatrixLayout& layout, const std::byte* blob);

// Codes, scales and zeros of one expert, without padding to alignment: what a kernel must read.
int64_t weight_bytes(WeightFormat format, int64_t hidden, int64_t inter);

}  // namespace moerun
