// Many tokens: a panel of 2 x lanes weight rows is packed once, then multiplied with all tokens of the
// expert. Included after a Simd and a Dot.
//
//   c[m][half * lanes + n] (+)= sum over k of row(half, n)[k] * x[m][k]        k in one block of K
//
// Panel: [k / group][half][lane][group]: one register holds `group` consecutive k of `lanes` rows, so that an
// activation is broadcast from its own row-major memory and sums need no horizontal additions. Two halves are
// two matrices (gate and up) or two neighbouring row groups (down). One thread; the panel lives in L1 and L2.
// Operations: 2 loads and M broadcasts feed 2 M multiply-adds; with M = 12 that is above 98 % of peak
// (measured). Bytes: the rows once for every token block. Packing costs as much as about four tokens; it
// transposes lanes x lanes blocks in registers. While a panel is multiplied, the rows of the next one are
// prefetched, line after line: the order in which the hardware prefetcher runs ahead by itself. Weakness:
// below about 12 tokens packing dominates; rows_inl.h serves those.
#pragma once
#include <cstdint>
#include <utility>

#include "cpu/kernels/rows_inl.h"
#include "src/types.h"

namespace moerun::cpu {
namespace {

// The rows [row, row + count) of a matrix, count <= lanes; the missing ones are zero.
struct RowGroup {
  MatrixView matrix;
  int64_t row = 0;
  int64_t count = 0;
};

// The memory of the next panel, to be prefetched in small portions meanwhile: one run of bytes for each half.
class Ahead {
 public:
  Ahead() = default;
  Ahead(const char* first, const char* second, int64_t bytes) : run_{first, second}, left_{bytes, bytes} {}

  // Where the next `lines` cache lines to prefetch begin; null when all is done.
  const char* take(int64_t lines) {
    const int half = left_[0] > 0 ? 0 : 1;
    if (left_[half] <= 0) return nullptr;
    const char* begin = run_[half];
    run_[half] += lines * 64;
    left_[half] -= lines * 64;
    return begin;
  }

 private:
  const char* run_[2] = {nullptr, nullptr};
  int64_t left_[2] = {0, 0};
};

inline void prefetch_lines(const char*& from, int lines) {
  if (!from) return;
  for (int i = 0; i < lines; ++i, from += 64) __builtin_prefetch(from);
}

template <class D>
inline void pack_contiguous(const RowGroup& g, int64_t k0, int64_t k_count, typename D::Vec* panel) {
  for (int64_t k = 0; k < k_count; k += D::step) {
    const int64_t left = smaller(D::step, k_count - k);
    typename D::Vec r[Simd::lanes];
    for (int i = 0; i < Simd::lanes; ++i) {
      if (i >= g.count) {
        r[i] = Simd::zero();
        continue;
      }
      const typename D::Row row = D::row(g.matrix, g.row + i);
      r[i] = left == D::step ? D::weights(row, k0 + k) : D::weights(row, k0 + k, static_cast<int>(left));
    }
    Simd::transpose(r);
    const int64_t groups = (left + D::group - 1) / D::group;
    for (int64_t i = 0; i < groups; ++i) panel[2 * (k / D::group + i)] = r[i];
  }
}

// Full blocks of contiguous rows: the same without the tests.
template <class D>
inline void pack_contiguous_full(const RowGroup& g, int64_t k0, int64_t k_count, typename D::Vec* panel) {
  for (int64_t k = 0; k < k_count; k += D::step) {
    typename D::Vec r[Simd::lanes];
#pragma GCC unroll 16
    for (int i = 0; i < Simd::lanes; ++i) r[i] = D::weights(D::row(g.matrix, g.row + i), k0 + k);
    Simd::transpose(r);
#pragma GCC unroll 16
    for (int i = 0; i < Simd::lanes; ++i) panel[2 * (k / D::group + i)] = r[i];
  }
}

// Column-major rows side by side (row_stride 1) or alternating with another matrix's (row_stride 2, as
// gpt-oss has it).
template <class D>
inline Simd::F load_column(const RowGroup& g, int64_t k) {
  constexpr DType W = D::weight_type;
  const char* from = element<W>(g.matrix, g.row, k);
  __builtin_prefetch(from + 2 * Simd::lanes * size_of(W));
  if (g.matrix.row_stride == 1)
    return g.count == Simd::lanes ? Simd::load_as<W>(from) : Simd::load_as<W>(from, g.count);
  if (g.count == Simd::lanes) return Simd::load_alternate<W>(from);
  float lane[Simd::lanes] = {};
  for (int64_t i = 0; i < g.count; ++i) {
    float one[Simd::lanes];
    Simd::store(one, Simd::load_as<W>(element<W>(g.matrix, g.row + i, k), 1));
    lane[i] = one[0];
  }
  return Simd::load(lane);
}

template <class D>
inline void pack_columns(const RowGroup& g, int64_t k0, int64_t k_count, typename D::Vec* panel) {
  for (int64_t k = 0; k < k_count; k += D::group) {
    const Simd::F first = load_column<D>(g, k0 + k);
    const Simd::F second = D::group > 1 && k + 1 < k_count ? load_column<D>(g, k0 + k + 1) : Simd::zero();
    panel[2 * (k / D::group)] = D::join_columns(first, second);
  }
}

template <class D>
inline void pack(const RowGroup& g, int64_t k0, int64_t k_count, typename D::Vec* panel) {
  if constexpr (!D::scaled)
    if (g.matrix.col_stride != 1) return pack_columns<D>(g, k0, k_count, panel);
  if (g.count == Simd::lanes && k_count % D::step == 0) return pack_contiguous_full<D>(g, k0, k_count, panel);
  pack_contiguous<D>(g, k0, k_count, panel);
}

// One tile: M tokens times one panel. `groups` panel entries; x[m] points at the block's first k.
// Accumulators start from c unless this is the first block of K. After each step of K, `lines` lines are
// prefetched from `soon` on.
template <class D, int M>
void multiply_tile(const typename D::Vec* panel, int64_t groups, const typename D::X* const* x, int64_t k0,
                   bool first, float* c, const char* soon, int lines) {
  constexpr int lanes = Simd::lanes;
  constexpr int64_t run = D::step / D::group;
  const typename D::X* row[M];
  typename D::Acc sum[M][2];
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
    row[m] = x[m] + k0;
    sum[m][0] = first ? Simd::zero() : Simd::load(c + m * 2 * lanes);
    sum[m][1] = first ? Simd::zero() : Simd::load(c + m * 2 * lanes + lanes);
  }
  for (int64_t begin = 0; begin < groups; begin += run) {
    const int64_t end = smaller(begin + run, groups);
    prefetch_lines(soon, lines);
    for (int64_t k = begin; k < end; ++k) {
      const typename D::Vec w0 = panel[2 * k], w1 = panel[2 * k + 1];
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) {
        const typename D::Vec xm = D::broadcast(row[m] + k * D::group);
        sum[m][0] = D::multiply_add(w0, xm, sum[m][0]);
        sum[m][1] = D::multiply_add(w1, xm, sum[m][1]);
      }
    }
  }
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
    Simd::store(c + m * 2 * lanes, sum[m][0]);
    Simd::store(c + m * 2 * lanes + lanes, sum[m][1]);
  }
}

template <class D>
using Tile = void (*)(const typename D::Vec*, int64_t, const typename D::X* const*, int64_t, bool, float*,
                      const char*, int);

template <class D, int... M>
inline Tile<D> choose_tile(int64_t tokens, std::integer_sequence<int, M...>) {
  static constexpr Tile<D> by_tokens[] = {multiply_tile<D, M + 1>...};
  return by_tokens[tokens - 1];
}

// c[tokens][2 * lanes] = both row groups times x, all of K. `next`: the row groups of the following call, or
// null.
template <class D>
void multiply_panel(const RowGroup (&halves)[2], int64_t k_count, int64_t k_block,
                    const typename D::X* const* x, int64_t tokens, float* c, void* panel_memory,
                    const RowGroup* next) {
  constexpr int lanes = Simd::lanes;
  auto* panel = static_cast<typename D::Vec*>(panel_memory);
  const int64_t blocks = (k_count + k_block - 1) / k_block;
  k_block = ((k_count + blocks - 1) / blocks + 63) / 64 * 64;  // as even as can be
  const int64_t tiles = (tokens + Simd::tile_tokens - 1) / Simd::tile_tokens;
  constexpr int64_t lines_per_step = 2 * lanes * D::step_bytes / 64;
  Ahead ahead;
  if (next && next[0].matrix.col_stride == 1) {
    const auto begin = [](const RowGroup& g) { return D::address(D::row(g.matrix, g.row), 0); };
    ahead = Ahead(begin(next[0]), begin(next[1]), lanes * D::row_bytes(next[0].matrix));
  }
  for (int64_t k0 = 0; k0 < k_count; k0 += k_block) {
    const int64_t block = smaller(k_block, k_count - k0), entries = (block + D::group - 1) / D::group;
    for (int half = 0; half < 2; ++half) pack<D>(halves[half], k0, block, panel + half);
    for (int64_t t = 0, m = 0; t < tiles; ++t) {
      const int64_t size = (tokens - m + tiles - t - 1) / (tiles - t);  // as even as can be
      const auto tile = choose_tile<D>(size, std::make_integer_sequence<int, Simd::tile_tokens>{});
      const int lines = static_cast<int>((lines_per_step * size + tokens - 1) / tokens);
      tile(panel, entries, x + m, k0, k0 == 0, c + m * 2 * lanes, ahead.take(lines * (block / D::step)),
           lines);
      m += size;
    }
  }
}

}  // namespace
}  // namespace moerun::cpu
