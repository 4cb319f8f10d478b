// The few value types that every layer shares: number formats, activations, and where an expert's weights
// lie. Plain data without methods that allocate, so that files built for any instruction set may include it.
#pragma once
#include <cstddef>
#include <cstdint>

namespace moerun {

enum class DType : uint8_t { f32 = 0, f16 = 1, bf16 = 2 };

constexpr int64_t size_of(DType t) {
  return t == DType::f32 ? 4 : 2;
}
constexpr const char* name_of(DType t) {
  return t == DType::f32 ? "fp32" : t == DType::f16 ? "fp16" : "bf16";
}

enum class Activation : uint8_t { silu = 0, gelu = 1, gelu_tanh = 2, relu2 = 3, swiglu_oai = 4 };

// gpt-oss: min(g, limit) * sigmoid(alpha * g) * (clamp(u, -limit, limit) + 1). The others ignore both
// numbers.
struct ActivationSpec {
  Activation kind = Activation::silu;
  float alpha = 1.702f;
  float limit = 7.0f;
};

// A weight matrix [N rows, K columns] where it lies: element (n, k) is at data + n * row_stride + k *
// col_stride. Strides are in elements. Rows that are K-contiguous (col_stride 1) are the rule; gpt-oss stores
// columns.
struct MatrixView {
  const void* data = nullptr;
  int64_t row_stride = 0;
  int64_t col_stride = 1;
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
