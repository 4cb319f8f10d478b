// A dense linear layer for a range of output rows: what LinearArgs describes. Included after a Simd.
// The same two kernels as for experts; for the dense parts of a model (attention projections, the head over
// the vocabulary), which would otherwise wait for a slower library.
#pragma once
#include <cstdint>

#include "cpu/kernel_table.h"
#include "cpu/kernels/convert_inl.h"
#include "cpu/kernels/expert_inl.h"

namespace moerun::cpu {
namespace {

// out[first_token + m][row ..] = c[m] + bias for a block of rows, through the thread's scratch.
inline void finish_linear(const LinearArgs& a, int64_t row, int64_t count, int64_t first_token,
                          int64_t tokens, float* c, int64_t c_stride) {
  for (int64_t m = 0; m < tokens; ++m) {
    float* from = c + m * c_stride;
    if (a.bias)
      for (int64_t i = 0; i < count; ++i) from[i] += a.bias[row + i];
    char* to = static_cast<char*>(a.out) + ((first_token + m) * a.out_stride + row) * size_of(a.out_type);
    convert(from, DType::f32, to, a.out_type, count);
  }
}

template <class D>
void linear(const LinearArgs& a) {
  constexpr int lanes = Simd::lanes;
  using X = typename D::X;
  const Workspace<D> work(a.scratch, a.blocking);
  const MatrixView& w = *a.matrix;
  const X* x[kMostTokenBlock];
  for (int64_t m0 = 0; m0 < a.count; m0 += a.blocking.token_block) {
    const int64_t tokens = smaller(a.blocking.token_block, a.count - m0);
    for (int64_t m = 0; m < tokens; ++m) x[m] = static_cast<const X*>(a.x) + (m0 + m) * a.x_stride;
    const bool few = few_tokens(tokens, w);
    const int64_t step = few ? kRowRun : 2 * lanes;
    for (int64_t n = a.begin; n < a.end; n += step) {
      const int64_t rows = smaller(step, a.end - n), after = a.end - n - step;
      if (few) {
        const RowGroup now = {w, n, rows}, next = {w, n + step, 1};
        multiply_rows<D>(now, a.inputs, x, tokens, work.c, step, after > 0 ? &next : nullptr);
      } else {
        const RowGroup now[2] = {{w, n, smaller(lanes, rows)},
                                 {w, n + lanes, rows > lanes ? rows - lanes : 0}};
        const RowGroup next[2] = {{w, n + step, lanes}, {w, n + step + lanes, lanes}};
        multiply_panel<D>(now, a.inputs, a.blocking.k_block, x, tokens, work.c, work.panel,
                          after >= step ? next : nullptr);
      }
      finish_linear(a, n, rows, m0, tokens, work.c, step);
    }
  }
}

template <class D>
constexpr ExpertKernels expert_kernels() {
  return {gate_up<D>, down<D>, linear<D>};
}

}  // namespace
}  // namespace moerun::cpu
