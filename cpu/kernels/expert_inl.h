// The two phases of one expert, for a range of rows: what GateUpArgs and DownArgs describe. Included after a
// Simd.
//
// Both phases compute sums for a block of rows by one of two kernels, chosen by the expert's own number of
// tokens, into the thread's scratch, and then finish them: activation, or routing weight and accumulation.
// One thread each; whoever calls them splits the rows among threads.
#pragma once
#include <cstdint>

#include "cpu/kernel_table.h"
#include "cpu/kernels/activation_inl.h"
#include "cpu/kernels/panel_inl.h"
#include "cpu/kernels/rows_inl.h"

namespace moerun::cpu {
namespace {

// Most tokens for which reading rows directly beats packing them. Heuristic from bench/kernels on Zen 5, cold
// weights: packing costs about four tokens' work, a second pass over rows in cache about one.
constexpr int64_t kMostRowTokens = 12;

// How many rows of a matrix are multiplied at a time: a panel's half, or a run long enough for the
// prefetcher.
constexpr int64_t kRowRun = 128;

inline bool few_tokens(int64_t tokens, const MatrixView& matrix) {
  return tokens <= kMostRowTokens && matrix.col_stride == 1;
}

template <class D>
inline void multiply_rows(const RowGroup& g, int64_t k_count, const typename D::X* const* x, int64_t tokens,
                          float* c, int64_t c_stride, const RowGroup* next) {
  const char* then = next ? D::address(D::row(next->matrix, next->row), 0) : nullptr;
  dot_rows<D>(g.matrix, g.row, g.count, k_count, x, tokens, c, c_stride, then);
}

// The thread's scratch: a packed panel, then the sums of a block of rows.
template <class D>
struct Workspace {
  void* panel;
  float* c;  // [tokens][2 * lanes], or [few tokens][2 * kRowRun]
  explicit Workspace(const Scratch& scratch, const Blocking& blocking)
      : panel(scratch.data), c(static_cast<float*>(scratch.data) + 2 * Simd::lanes * blocking.k_block) {}
};

constexpr int64_t kMostTokenBlock = 384;  // what blocking() may choose; bounds the pointers on the stack

inline Simd::F load_bias(const float* bias, int64_t row, int64_t count) {
  if (!bias) return Simd::zero();
  return count == Simd::lanes ? Simd::load(bias + row) : Simd::load(bias + row, count);
}

// h[m][row ..] = act(gate, up) for up to `lanes` rows; gate and up results lie c_stride apart from token to
// token.
template <class D>
inline void finish_gate_up(const GateUpArgs& a, int64_t row, int64_t count, int64_t first_token,
                           int64_t tokens, const float* gate, const float* up, int64_t c_stride) {
  const Simd::F gate_bias = load_bias(a.expert->gate_bias, row, count);
  const Simd::F up_bias = load_bias(a.expert->up_bias, row, count);
  for (int64_t m = 0; m < tokens; ++m) {
    const Simd::F g = Simd::add(Simd::load(gate + m * c_stride), gate_bias);
    const Simd::F u = Simd::add(Simd::load(up + m * c_stride), up_bias);
    auto* h = static_cast<typename D::X*>(a.h) + (first_token + m) * a.h_stride + row;
    if (count == Simd::lanes)
      Simd::store_as<D::activation_type>(h, gated(a.activation, g, u));
    else
      Simd::store_as<D::activation_type>(h, gated(a.activation, g, u), count);
  }
}

// y[rows[m]][row ..] += weights[m] * (c[m] + bias) for up to `lanes` rows.
inline void finish_down(const DownArgs& a, int64_t row, int64_t count, int64_t first_token, int64_t tokens,
                        const float* c, int64_t c_stride) {
  const Simd::F bias = load_bias(a.expert->down_bias, row, count);
  for (int64_t m = 0; m < tokens; ++m) {
    const Simd::F value = Simd::add(Simd::load(c + m * c_stride), bias);
    const Simd::F weight = Simd::set1(a.weights[first_token + m]);
    float* y = a.y + a.rows[first_token + m] * a.y_stride + row;
    if (count == Simd::lanes)
      Simd::store(y, Simd::fmadd(weight, value, Simd::load(y)));
    else
      Simd::store(y, Simd::fmadd(weight, value, Simd::load(y, count)), count);
  }
}

template <class D>
void gate_up(const GateUpArgs& a) {
  constexpr int lanes = Simd::lanes;
  using X = typename D::X;
  const Workspace<D> work(a.scratch, a.blocking);
  const ExpertView& e = *a.expert;
  const X* x[kMostTokenBlock];
  for (int64_t m0 = 0; m0 < a.count; m0 += a.blocking.token_block) {
    const int64_t tokens = smaller(a.blocking.token_block, a.count - m0);
    for (int64_t m = 0; m < tokens; ++m) x[m] = static_cast<const X*>(a.x) + a.rows[m0 + m] * a.x_stride;
    const bool few = few_tokens(tokens, e.gate);
    const int64_t step = few ? kRowRun : lanes, c_stride = 2 * step;
    for (int64_t n = a.begin; n < a.end; n += step) {
      const int64_t rows = smaller(step, a.end - n), after = smaller(step, a.end - n - step);
      const RowGroup now[2] = {{e.gate, n, rows}, {e.up, n, rows}};
      const RowGroup next[2] = {{e.gate, n + step, after}, {e.up, n + step, after}};
      if (few) {
        multiply_rows<D>(now[0], a.hidden, x, tokens, work.c, c_stride, &now[1]);
        multiply_rows<D>(now[1], a.hidden, x, tokens, work.c + step, c_stride,
                         after > 0 ? &next[0] : nullptr);
      } else {
        multiply_panel<D>(now, a.hidden, a.blocking.k_block, x, tokens, work.c, work.panel,
                          after == lanes ? next : nullptr);
      }
      for (int64_t i = 0; i < rows; i += lanes)
        finish_gate_up<D>(a, n + i, smaller(lanes, rows - i), m0, tokens, work.c + i, work.c + step + i,
                          c_stride);
    }
  }
  if (a.end == a.inter)
    for (int64_t m = 0; m < a.count; ++m)
      for (int64_t n = a.inter; n < a.h_stride; ++n) static_cast<X*>(a.h)[m * a.h_stride + n] = 0;
}

template <class D>
void down(const DownArgs& a) {
  constexpr int lanes = Simd::lanes;
  using X = typename D::X;
  const Workspace<D> work(a.scratch, a.blocking);
  const ExpertView& e = *a.expert;
  const X* h[kMostTokenBlock];
  for (int64_t m0 = 0; m0 < a.count; m0 += a.blocking.token_block) {
    const int64_t tokens = smaller(a.blocking.token_block, a.count - m0);
    for (int64_t m = 0; m < tokens; ++m) h[m] = static_cast<const X*>(a.h) + (m0 + m) * a.h_stride;
    const bool few = few_tokens(tokens, e.down);
    const int64_t step = few ? kRowRun : 2 * lanes;
    for (int64_t n = a.begin; n < a.end; n += step) {
      const int64_t rows = smaller(step, a.end - n), after = a.end - n - step;
      // what is read next: further rows of this expert, or the same rows of the next one
      const MatrixView* then = after > 0 ? &e.down : a.next ? &a.next->down : nullptr;
      const int64_t at = after > 0 ? n + step : a.begin;
      if (few) {
        const RowGroup now = {e.down, n, rows}, next = {then ? *then : e.down, at, 1};
        multiply_rows<D>(now, a.inter, h, tokens, work.c, step, then ? &next : nullptr);
      } else {
        const RowGroup now[2] = {{e.down, n, smaller(lanes, rows)},
                                 {e.down, n + lanes, rows > lanes ? rows - lanes : 0}};
        const bool whole = then && a.end - at >= step;
        const RowGroup next[2] = {{then ? *then : e.down, at, lanes},
                                  {then ? *then : e.down, at + lanes, lanes}};
        multiply_panel<D>(now, a.inter, a.blocking.k_block, h, tokens, work.c, work.panel,
                          whole ? next : nullptr);
      }
      for (int64_t i = 0; i < rows; i += lanes)
        finish_down(a, n + i, smaller(lanes, rows - i), m0, tokens, work.c + i, step);
    }
  }
}

}  // namespace
}  // namespace moerun::cpu
