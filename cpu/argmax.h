// The index of the largest of a row of logits.
#pragma once
#include <algorithm>
#include <cstdint>

#include "src/types.h"

namespace moerun::cpu {

// Bits of floating numbers as integers in the same order: negative ones are turned over. A NaN without a sign
// is the largest of all, as in torch.
template <class Bits>
constexpr Bits in_order(Bits b) {
  constexpr int kSign = 8 * sizeof(Bits) - 1;
  return static_cast<Bits>(b ^ ((b >> kSign) & static_cast<Bits>(~(Bits{1} << kSign))));
}

template <class Bits>
int64_t index_of_largest(const Bits* values, int64_t n) {
  Bits most = in_order(values[0]);
  for (int64_t i = 1; i < n; ++i) most = std::max(most, in_order(values[i]));
  return std::find_if(values, values + n, [&](Bits b) { return in_order(b) == most; }) - values;
}

// Of n >= 1 numbers; the first of equal ones.
inline int64_t argmax(const void* values, DType type, int64_t n) {
  if (type == DType::f32) return index_of_largest(static_cast<const int32_t*>(values), n);
  return index_of_largest(static_cast<const int16_t*>(values), n);
}

}  // namespace moerun::cpu
