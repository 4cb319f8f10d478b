// One dense linear layer as work items of a region of the team. Whoever opens the region (linear_forward,
// attention_forward, router_forward) runs the items, each once, in any order and on any thread.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cpu/activations.h"
#include "cpu/cpu_info.h"
#include "cpu/kernel_table.h"
#include "cpu/work_ranges.h"
#include "src/types.h"

namespace moerun::cpu {

struct LinearView {
  MatrixView matrix;  // [outputs, inputs]
  const float* bias = nullptr;
  int64_t outputs = 0, inputs = 0;
  WeightFormat format = WeightFormat::f32;
};

// Rows of results, contiguous.
struct LinearOutput {
  void* data = nullptr;
  DType type = DType::f32;
  int64_t stride = 0;  // elements
};

class LinearWork {
 public:
  // `x` [tokens, layer.inputs] in the type that `kernels` want, zeros behind each row.
  LinearWork(const ExpertKernels& kernels, const Blocking& blocking, const LinearView& layer,
             const Activations& x, int64_t tokens, const LinearOutput& out, int threads)
      : kernels_(kernels),
        blocking_(blocking),
        layer_(layer),
        x_(x),
        tokens_(tokens),
        out_(out),
        rows_(rows_per_item(layer.outputs, 1, bytes_of(layer.format, layer.inputs), threads)) {}

  int64_t items() const { return (layer_.outputs + rows_ - 1) / rows_; }

  // scratch: scratch_bytes(blocking, layer.inputs), of one thread
  void run(int64_t item, void* scratch) const noexcept {
    kernels_.linear({.matrix = &layer_.matrix,
                     .bias = layer_.bias,
                     .inputs = layer_.inputs,
                     .begin = item * rows_,
                     .end = std::min((item + 1) * rows_, layer_.outputs),
                     .x = x_.data,
                     .x_stride = x_.stride,
                     .count = tokens_,
                     .out = out_.data,
                     .out_type = out_.type,
                     .out_stride = out_.stride,
                     .blocking = blocking_,
                     .scratch = {scratch}});
  }

 private:
  const ExpertKernels& kernels_;
  const Blocking blocking_;
  const LinearView& layer_;
  const Activations x_;
  const int64_t tokens_;
  const LinearOutput out_;
  const int64_t rows_;
};

}  // namespace moerun::cpu
