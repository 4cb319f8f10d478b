// The two phases of one expert, for a range of rows: what GateUpArgs and DownArgs describe. Included after a Simd.
//
// Both phases compute blocks of 2 x lanes results per token (gate | up, or two neighbouring row groups of down) by one
// of two kernels, chosen by the expert's own number of tokens, and then finish them: activation, or routing weight and
// accumulation. One thread each; whoever calls them splits the rows among threads.
#pragma once
#include <cstdint>

#include "cpu/kernel_table.h"
#include "cpu/kernels/activation_inl.h"
#include "cpu/kernels/panel_inl.h"
#include "cpu/kernels/rows_inl.h"

namespace moerun::cpu {
namespace {

// Most tokens for which reading rows directly beats packing them. Heuristic from bench/kernels on Zen 5, cold weights:
// packing costs about four tokens' work, a second pass over rows in cache about one.
constexpr int64_t kMostRowTokens = 6;

// c[tokens][2 * lanes] for both row groups. c_of and panel are parts of the thread's scratch.
template <class D>
inline void multiply(const RowGroup (&halves)[2], int64_t k_count, const typename D::X* const* x, int64_t tokens,
                     const Blocking& blocking, float* c, void* panel, const RowGroup* next) {
  constexpr int lanes = Simd::lanes;
  const bool contiguous = halves[0].matrix.col_stride == 1;
  if (tokens > kMostRowTokens || !contiguous)
    return multiply_panel<D>(halves, k_count, blocking.k_block, x, tokens, c, panel, next);
  for (int half = 0; half < 2; ++half) {
    const RowGroup& g = halves[half];
    dot_rows<D>(element<D::weight_type>(g.matrix, g.row, 0), g.matrix.row_stride * size_of(D::weight_type), g.count,
                k_count, x, tokens, c + half * lanes, 2 * lanes);
  }
}

template <class D>
struct Workspace {
  void* panel;
  float* c;
  explicit Workspace(const Scratch& scratch, const Blocking& blocking)
      : panel(scratch.data),
        c(static_cast<float*>(scratch.data) + 2 * Simd::lanes * blocking.k_block) {}
};

constexpr int64_t kMostTokenBlock = 384;  // what blocking() may choose; bounds the pointers on the stack

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
    for (int64_t n = a.begin; n < a.end; n += lanes) {
      const int64_t rows = smaller(lanes, a.end - n), rows_after = smaller(lanes, a.end - n - lanes);
      const RowGroup halves[2] = {{e.gate, n, rows}, {e.up, n, rows}};
      const RowGroup next[2] = {{e.gate, n + lanes, rows_after}, {e.up, n + lanes, rows_after}};
      multiply<D>(halves, a.hidden, x, tokens, a.blocking, work.c, work.panel, rows_after == lanes ? next : nullptr);
      const auto bias = [&](const float* b) {
        return !b ? Simd::zero() : rows == lanes ? Simd::load(b + n) : Simd::load(b + n, rows);
      };
      const Simd::F gate_bias = bias(e.gate_bias), up_bias = bias(e.up_bias);
      for (int64_t m = 0; m < tokens; ++m) {
        const float* c = work.c + m * 2 * lanes;
        const Simd::F g = Simd::add(Simd::load(c), gate_bias), u = Simd::add(Simd::load(c + lanes), up_bias);
        X* h = static_cast<X*>(a.h) + (m0 + m) * a.h_stride + n;
        if (rows == lanes)
          Simd::store_as<D::activation_type>(h, gated(a.activation, g, u));
        else
          Simd::store_as<D::activation_type>(h, gated(a.activation, g, u), rows);
      }
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
    for (int64_t n = a.begin; n < a.end; n += 2 * lanes) {
      const int64_t left = a.end - n;
      const int64_t rows[2] = {smaller(lanes, left), left > lanes ? smaller(lanes, left - lanes) : 0};
      const RowGroup halves[2] = {{e.down, n, rows[0]}, {e.down, n + lanes, rows[1]}};
      const ExpertView* soon = left >= 4 * lanes ? &e : a.next;
      const int64_t at = left >= 4 * lanes ? n + 2 * lanes : a.begin;
      const bool whole = soon && a.end - at >= 2 * lanes;
      const RowGroup next[2] = {{whole ? soon->down : e.down, at, lanes}, {whole ? soon->down : e.down, at + lanes, lanes}};
      multiply<D>(halves, a.inter, h, tokens, a.blocking, work.c, work.panel, whole ? next : nullptr);
      for (int half = 0; half < 2; ++half) {
        const int64_t first = n + half * lanes, count = rows[half];
        if (count == 0) break;
        const bool full = count == lanes;
        const Simd::F bias = !e.down_bias ? Simd::zero()
                             : full       ? Simd::load(e.down_bias + first)
                                          : Simd::load(e.down_bias + first, count);
        for (int64_t m = 0; m < tokens; ++m) {
          const Simd::F value = Simd::add(Simd::load(work.c + (2 * m + half) * lanes), bias);
          const Simd::F weight = Simd::set1(a.weights[m0 + m]);
          float* y = a.y + a.rows[m0 + m] * a.y_stride + first;
          if (full)
            Simd::store(y, Simd::fmadd(weight, value, Simd::load(y)));
          else
            Simd::store(y, Simd::fmadd(weight, value, Simd::load(y, count)), count);
        }
      }
    }
  }
}

template <class D>
constexpr ExpertKernels expert_kernels() {
  return {gate_up<D>, down<D>};
}

}  // namespace
}  // namespace moerun::cpu
