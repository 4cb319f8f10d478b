// The few value types that every layer shares: number formats, activations, where an expert's weights lie.
// Plain data without methods that allocate, so that files built for any instruction set may include it.
#pragma once
#include <cstddef>
#include <cstdint>

namespace moerun {

// Of activations and outputs, and of weights that are not quantised.
enum class DType : uint8_t { f32 = 0, f16 = 1, bf16 = 2 };

constexpr int64_t size_of(DType t) {
  return t == DType::f32 ? 4 : 2;
}
constexpr const char* name_of(DType t) {
  return t == DType::f32 ? "fp32" : t == DType::f16 ? "fp16" : "bf16";
}

// How the weights of an expert are stored. The first three are DType's, with the same values.
enum class WeightFormat : uint8_t {
  f32 = 0,
  f16 = 1,
  bf16 = 2,
  int8 = 3,       // code * scale, one scale a row
  int8_g128 = 4,  // one scale for 128 of K
  int4_g32 = 5,   // (code - 8) * scale; two codes a byte, the even k in the low half
  int4_g64 = 6,
  int4_g128 = 7,
  int4z_g32 = 8,  // (code - zero) * scale
  int4z_g64 = 9,
  int4z_g128 = 10,
  fp8_b128 = 11,  // e4m3 * scale, one scale for a block of 128 rows and 128 of K
  mxfp4 = 12,     // e2m1 * 2^(scale - 127); two codes a byte, the even k in the low half (OCP MX 1.0)
};
constexpr int kWeightFormats = 13;

enum class ScaleType : uint8_t { none, f32, f16, e8m0 };

constexpr int64_t size_of(ScaleType t) {
  return t == ScaleType::none ? 0 : t == ScaleType::f32 ? 4 : t == ScaleType::f16 ? 2 : 1;
}

struct FormatInfo {
  const char* name;
  int bits;  // of one code
  ScaleType scale = ScaleType::none;
  int group = 0;       // elements of K that share a scale; 0: the whole row
  int block_rows = 1;  // rows that share a scale
  bool zeros = false;  // whether each scale comes with a zero point, a byte of 0 .. 15
};

constexpr FormatInfo kFormatInfo[kWeightFormats] = {
    {.name = "fp32", .bits = 32},
    {.name = "fp16", .bits = 16},
    {.name = "bf16", .bits = 16},
    {.name = "int8", .bits = 8, .scale = ScaleType::f32},
    {.name = "int8_g128", .bits = 8, .scale = ScaleType::f16, .group = 128},
    {.name = "int4_g32", .bits = 4, .scale = ScaleType::f16, .group = 32},
    {.name = "int4_g64", .bits = 4, .scale = ScaleType::f16, .group = 64},
    {.name = "int4_g128", .bits = 4, .scale = ScaleType::f16, .group = 128},
    {.name = "int4z_g32", .bits = 4, .scale = ScaleType::f16, .group = 32, .zeros = true},
    {.name = "int4z_g64", .bits = 4, .scale = ScaleType::f16, .group = 64, .zeros = true},
    {.name = "int4z_g128", .bits = 4, .scale = ScaleType::f16, .group = 128, .zeros = true},
    {.name = "fp8_b128", .bits = 8, .scale = ScaleType::f32, .group = 128, .block_rows = 128},
    {.name = "mxfp4", .bits = 4, .scale = ScaleType::e8m0, .group = 32},
};

constexpr const FormatInfo& info(WeightFormat f) {
  return kFormatInfo[static_cast<int>(f)];
}
constexpr bool is_quantised(WeightFormat f) {
  return info(f).scale != ScaleType::none;
}
constexpr WeightFormat weight_format(DType t) {
  return static_cast<WeightFormat>(t);
}
constexpr int64_t bytes_of(WeightFormat f, int64_t elements) {
  return elements * info(f).bits / 8;
}

enum class Activation : uint8_t { silu = 0, gelu = 1, gelu_tanh = 2, relu2 = 3, swiglu_oai = 4 };

// gpt-oss: min(g, limit) * sigmoid(alpha * g) * (clamp(u, -limit, limit) + 1). The others ignore the two.
struct ActivationSpec {
  Activation kind = Activation::silu;
  float alpha = 1.702f;
  float limit = 7.0f;
};

// A weight matrix [N rows, K columns] where it lies; strides are in elements. Element (n, k) is at
//   data + n * row_stride + k * col_stride
// Rows that are K-contiguous (col_stride 1) are the rule; gpt-oss stores columns.
//
// A quantised matrix is always a part of a blob (src/expert_store/blob_layout.h): col_stride is 1, every row
// of codes begins at a multiple of 64 bytes and is filled up to the next one with weights that are 0, by
// their code or because the scale of their group, which is there too, is 0. So a kernel may take whole
// 64-byte steps of codes, if its activations beyond K are finite. The scale of element (n, k), and likewise
// its zero point, is
//   scales[n / block_rows * scale_stride + k / group]
struct MatrixView {
  const void* data = nullptr;
  int64_t row_stride = 0;
  int64_t col_stride = 1;
  const void* scales = nullptr;    // [rows / block_rows, scale_stride] of the format's ScaleType
  const uint8_t* zeros = nullptr;  // [rows, scale_stride], or null
  int64_t scale_stride = 0;        // scales from row to row; 1 where a row has one scale
};

// One expert: y = down @ (act(gate @ x + gate_bias) * (up @ x + up_bias)) + down_bias. Biases fp32 or null.
struct ExpertView {
  MatrixView gate, up;               // [I, H]
  MatrixView down;                   // [H, I]
  const float* gate_bias = nullptr;  // [I]
  const float* up_bias = nullptr;    // [I]
  const float* down_bias = nullptr;  // [H]
};

}  // namespace moerun
