#include "cpu/norm_forward.h"

#include "cpu/activations.h"

namespace moerun::cpu {
namespace {

constexpr int64_t kElementsPerThread = 1 << 16;  // about 10 us; heuristic

}  // namespace

void rms_norm(const KernelTable& kernels, const Team& team, const NormView& norm, const NormBatch& batch) {
  const auto rows = [&](int64_t begin, int64_t end) noexcept {
    for (int64_t row = begin; row < end; ++row)
      kernels.dense.rms_norm({.x = offset(batch.x, row * batch.x_stride, batch.x_type),
                              .x_type = batch.x_type,
                              .weight = norm.weight,
                              .epsilon = norm.epsilon,
                              .width = norm.width,
                              .y = offset(batch.out.data, row * batch.out.stride, batch.out.type),
                              .y_type = batch.out.type});
  };
  if (batch.rows * norm.width <= kElementsPerThread) return rows(0, batch.rows);
  team.run([&](Member me) noexcept {
    rows(batch.rows * me.thread / me.size, batch.rows * (me.thread + 1) / me.size);
  });
}

}  // namespace moerun::cpu
