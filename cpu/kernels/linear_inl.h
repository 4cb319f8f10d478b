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

// As finish_linear, from c [row][c_stride] of whole vectors of tokens.
inline void finish_linear_vectors(const LinearArgs& a, int64_t row, int64_t count, int64_t first_token,
                                  int64_t tokens, const float* c, int64_t c_stride) {
  for (int64_t n = 0; n < count; n += Simd::lanes)
    for (int64_t m = 0; m < tokens; m += Simd::lanes) {
      alignas(64) float sums[Simd::lanes * Simd::lanes];
      load_transposed(c + n * c_stride + m, c_stride, count - n, sums);
      finish_linear(a, row + n, smaller(Simd::lanes, count - n), first_token + m,
                    smaller(Simd::lanes, tokens - m), sums, Simd::lanes);
    }
}

// Rows [begin, begin + rows) for the last tokens, row by row.
template <class D>
void linear_rows(const LinearArgs& a, int64_t begin, int64_t rows, const RowTokens<D>& x, float* c,
                 bool more) {
  const RowRun next = {*a.matrix, begin + rows, 1};
  multiply_rows<D>({*a.matrix, begin, rows}, a.inputs, x.x, x.count, c, kRowRun, more ? &next : nullptr);
  finish_linear(a, begin, rows, a.count - x.count, x.count, c, kRowRun);
}

template <class D>
void linear(const LinearArgs& a) {
  using X = typename D::X;
  const Workspace work(a.scratch, a.blocking, a.inputs);
  const int64_t in_vectors = tokens_in_vectors<D>(a.count, *a.matrix);
  const auto token = [&](int64_t m) { return static_cast<const X*>(a.x) + m * a.x_stride; };
  const RowTokens<D> rest(a.count - in_vectors, a.inputs, work.arranged,
                          [&](int64_t m) { return token(in_vectors + m); });
  if (in_vectors == 0) {
    for (int64_t n = a.begin; n < a.end; n += kRowRun)
      linear_rows<D>(a, n, smaller(kRowRun, a.end - n), rest, work.c, n + kRowRun < a.end);
    return;
  }
  const int64_t words = padded_k(a.inputs) / D::group, block = token_block(a.blocking, a.inputs, in_vectors);
  const X* x[kMostTokenBlock];
  for (int64_t m0 = 0; m0 < in_vectors; m0 += block) {
    const int64_t tokens = smaller(block, in_vectors - m0);
    for (int64_t m = 0; m < tokens; ++m) x[m] = token(m0 + m);
    auto* packed = reinterpret_cast<typename D::Vec*>(work.panel);
    pack_tokens<Tiles<D>>(x, tokens, words, packed);
    const PanelOf<Tiles<D>> panel =
        multiplied_form<Tiles<D>>({packed, vectors(tokens), words}, a.inputs, work.coded);
    const int64_t c_stride = panel.vectors * Simd::lanes;
    for (int64_t n = a.begin; n < a.end; n += kTileRun<D>) {
      const RowRun now = {*a.matrix, n, smaller(kTileRun<D>, a.end - n)};
      const RowRun next = {*a.matrix, n + kTileRun<D>, a.end - n - kTileRun<D>};
      multiply_panel<D>(now, a.inputs, panel, work.c, c_stride, work.stage, next.count > 0 ? &next : nullptr);
      finish_linear_vectors(a, n, now.count, m0, tokens, work.c, c_stride);
      if (m0 + tokens == in_vectors && in_vectors < a.count)
        linear_rows<D>(a, n, now.count, rest, work.c, false);
    }
  }
}

template <class D>
constexpr ExpertKernels expert_kernels() {
  return {gate_up<D>, down<D>, linear<D>, D::Tiles::dot_type};
}

}  // namespace
}  // namespace moerun::cpu
