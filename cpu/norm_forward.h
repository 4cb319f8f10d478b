// The norm of every row on the CPU. Called by src/engine for what stands around the experts.
#pragma once
#include <cstdint>

#include "cpu/kernel_table.h"
#include "cpu/linear_work.h"
#include "cpu/team.h"

namespace moerun::cpu {

struct NormView {
  const float* weight = nullptr;  // [width]
  int64_t width = 0;
  float epsilon = 0.0f;
};

// x and out [rows, width], rows contiguous; they may be the same.
struct NormBatch {
  const void* x = nullptr;
  DType x_type = DType::f32;
  int64_t x_stride = 0;
  LinearOutput out;
  int64_t rows = 0;
};

// The calling thread alone does few rows: they take less than a second thread to wake up.
void rms_norm(const KernelTable& kernels, const Team& team, const NormView& norm, const NormBatch& batch);

}  // namespace moerun::cpu
