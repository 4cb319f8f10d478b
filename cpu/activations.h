// How rows of activations lie in memory for the kernels: padded with zeros to whole steps, and spread so that
// they do not compete for the same sets of L1. Used by moe_forward.cc and linear_forward.cc.
#pragma once
#include <cstdint>
#include <type_traits>

#include "cpu/buffer.h"
#include "cpu/kernel_table.h"

namespace moerun::cpu {

constexpr int64_t kPad = 64;  // elements; a multiple of any kernel's step

// Rows a multiple of 4 KiB apart share a few sets of L1: with several tokens that halves the speed
// (measured). Heuristic: so does any multiple of 1 KiB to a lesser degree.
constexpr int64_t kCrowded = 1024;

constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

constexpr bool crowded(int64_t stride, int64_t element_bytes) {
  return stride * element_bytes % kCrowded == 0;
}

// Elements from row to row.
constexpr int64_t spread(int64_t elements, int64_t element_bytes) {
  const int64_t stride = round_up(elements, kPad);
  return crowded(stride, element_bytes) ? stride + kPad : stride;
}

template <class T>
T* offset(T* base, int64_t elements, DType type) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return static_cast<Byte*>(base) + elements * size_of(type);
}

// The activations of a batch as the kernels read them: where the caller has them, or to be copied.
struct Activations {
  const void* data = nullptr;
  int64_t stride = 0;    // elements
  void* copy = nullptr;  // where copy_row writes; null if the caller's memory serves
};

// `rows` rows of `width` elements at `x`, wanted in type `active`; `memory` receives a copy if one is needed.
Activations place_activations(const void* x, DType type, int64_t stride, int64_t rows, int64_t width,
                              DType active, Buffer& memory);

// Zeros behind the `width` elements of a row of the copy.
void pad_row(int64_t row, int64_t width, DType active, const Activations& to) noexcept;

// Converts row `row` of `x` into its place in the copy, with zeros behind it.
void copy_row(const KernelTable& kernels, const void* x, DType type, int64_t stride, int64_t row,
              int64_t width, DType active, const Activations& to) noexcept;

}  // namespace moerun::cpu
