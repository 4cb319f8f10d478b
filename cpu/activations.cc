#include "cpu/activations.h"

#include <cstring>

namespace moerun::cpu {

Activations place_activations(const void* x, DType type, int64_t stride, int64_t rows, int64_t width,
                              DType active, Buffer& memory) {
  const bool usable = type == active && width % kPad == 0 && (rows == 1 || !crowded(stride, size_of(active)));
  if (usable) return {.data = x, .stride = stride};
  const int64_t spaced = spread(width, size_of(active));
  void* copy = memory.at_least(rows * spaced * size_of(active));
  return {.data = copy, .stride = spaced, .copy = copy};
}

void pad_row(int64_t row, int64_t width, DType active, const Activations& to) noexcept {
  std::memset(offset(to.copy, row * to.stride + width, active), 0, (to.stride - width) * size_of(active));
}

void copy_row(const KernelTable& kernels, const void* x, DType type, int64_t stride, int64_t row,
              int64_t width, DType active, const Activations& to) noexcept {
  kernels.convert(offset(x, row * stride, type), type, offset(to.copy, row * to.stride, active), active,
                  width);
  pad_row(row, width, active, to);
}

}  // namespace moerun::cpu
