// A dense linear layer on the CPU: out = x matrix^T + bias, shared by a team. Called by src/engine for the
// parts of a model around the experts; the kernels do the arithmetic.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/barrier.h"
#include "cpu/buffer.h"
#include "cpu/kernel_table.h"
#include "cpu/linear_work.h"
#include "cpu/team.h"
#include "cpu/work_ranges.h"

namespace moerun::cpu {

// x [tokens, inputs] and out [tokens, outputs], rows contiguous. They may not overlap.
struct LinearBatch {
  const void* x = nullptr;
  DType x_type = DType::f32;
  int64_t x_stride = 0;
  LinearOutput out;
  int64_t tokens = 0;
};

class LinearForward {
 public:
  LinearForward(const KernelTable& kernels, int threads);

  void run(const LinearView& layer, const LinearBatch& batch);

  int64_t workspace_bytes() const;

 private:
  const KernelTable& kernels_;
  Team team_;
  Barrier barrier_;
  WorkRanges convert_, multiply_;
  Buffer x_;
  std::vector<Buffer> scratch_;  // by thread
};

}  // namespace moerun::cpu
