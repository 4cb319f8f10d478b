// The two phases of one expert, for a range of rows: what GateUpArgs and DownArgs describe. Included after a
// Simd.
//
// An expert's tokens go in vectors (tile_inl.h), and a small rest of them row by row (rows_inl.h). Both
// compute sums for a run of rows into the thread's scratch, and then finish them: activation, or routing
// weight and accumulation. h is packed for tokens in vectors, [vector][word of K][token][group], as int8
// where the down phase multiplies that, and has rows for the others; both take the same space. One thread
// each; whoever calls them splits the rows among threads.
#pragma once
#include <cstdint>

#include "cpu/kernel_table.h"
#include "cpu/kernels/activation_inl.h"
#include "cpu/kernels/pack_inl.h"
#include "cpu/kernels/rows_inl.h"
#include "cpu/kernels/stage_inl.h"
#include "cpu/kernels/tile_inl.h"

namespace moerun::cpu {
namespace {

// Most tokens that are read row by row rather than as a vector. Heuristic from bench/kernels on Zen 5: a pass
// of rows_inl.h over four tokens costs less than half of a vector's tile, memory taken aside.
constexpr int64_t kMostRowTokens = 8;
// Of integers, a second pass costs more than a vector of them, whose rows are there anyway (measured).
constexpr int64_t kMostIntegerRest = kRowTokens;

// How many rows of a matrix are multiplied at a time: a run long enough for the prefetcher, or some groups of
// tiles whose sums stay in L1 and L2.
constexpr int64_t kRowRun = 128;
template <class D>
constexpr int64_t kTileRun = is_integer<Tiles<D>> ? kRowBlock : 2 * kGroupRows;

// Of an expert's tokens, how many go as vectors; the rest, behind them, go row by row. Both phases agree on
// it.
template <class D>
inline int64_t tokens_in_vectors(int64_t count, const MatrixView& matrix) {
  const int64_t rest = count % Simd::lanes;
  const int64_t most = is_integer<Tiles<D>> && count > rest ? kMostIntegerRest : kMostRowTokens;
  return rest <= most && matrix.col_stride == 1 ? count - rest : count;
}

inline int64_t vectors(int64_t tokens) {
  return (tokens + Simd::lanes - 1) / Simd::lanes;
}

template <class D>
inline void multiply_rows(const RowRun& run, int64_t k_count, const typename D::RowX* const* x,
                          int64_t tokens, float* c, int64_t c_stride, const RowRun* next) {
  typename D::Row then{};
  if (next) then = D::row(next->matrix, next->row);
  dot_rows<D>(run.matrix, run.row, run.count, k_count, x, tokens, c, c_stride, next ? &then : nullptr);
}

// The thread's scratch: packed activations, the same quantised, staged rows, activations arranged for row by
// row, then the sums of a run of rows: [row][tokens] for vectors, [token][rows] for tokens row by row.
struct Workspace {
  char* panel;
  char* coded;
  char* stage;
  char* arranged;
  float* c;
  Workspace(const Scratch& scratch, const Blocking& blocking, int64_t k)
      : panel(static_cast<char*>(scratch.data)),
        coded(panel + panel_bytes(blocking, k)),
        stage(coded + panel_bytes(blocking, k)),
        arranged(stage + stage_bytes(blocking, k)),
        c(reinterpret_cast<float*>(arranged + arranged_bytes(k))) {}
};
static_assert(kSumsBytes >= kMostRowTokens * 2 * kRowRun * int64_t{sizeof(float)});
static_assert(kSumsBytes >= 2 * kRowBlock * kMostTokenBlock * int64_t{sizeof(float)});
static_assert(kRowBlock >= 2 * kGroupRows);

// The tokens that go row by row, at most kMostRowTokens, as the kernel reads them.
template <class D>
struct RowTokens {
  const typename D::RowX* x[kMostRowTokens];
  int64_t count;

  // given(i): where token i of them lies
  template <class Given>
  RowTokens(int64_t tokens, int64_t k_count, char* memory, Given&& given) : count(tokens) {
    for (int64_t m = 0; m < tokens; ++m) {
      if constexpr (D::arranged) {
        auto* to = reinterpret_cast<typename D::RowX*>(memory) + m * D::arranged_size(k_count);
        D::arrange(given(m), k_count, to);
        x[m] = to;
      } else {
        x[m] = given(m);
      }
    }
  }
};

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

// Where h of vectors of tokens lies, from token m0 on, in the form that `down` multiplies.
template <class D>
inline auto* hidden_vectors(void* h, int64_t m0, int64_t h_stride) {
  return reinterpret_cast<typename D::Tiles::Sum*>(static_cast<typename D::X*>(h) + m0 * h_stride);
}
template <class D>
constexpr int64_t hidden_vector_stride(int64_t h_stride) {
  return h_stride / D::group;
}

// h of `count` rows from c_gate and c_up [row][c_stride], for whole vectors of tokens: rows of c are words of
// h's packed form already, but for joining `group` of them, or for quantising them when they are blocks of
// K of the down phase. `row` is a multiple of group, or of the block.
template <class D>
inline void finish_gate_up_vectors(const GateUpArgs& a, int64_t row, int64_t count, int64_t vectors,
                                   const float* gate, const float* up, int64_t c_stride,
                                   typename D::Tiles::Sum* h) {
  const auto result = [&](int64_t n, int64_t v) {
    if (n >= count) return Simd::zero();
    const int64_t at = n * c_stride + v * Simd::lanes;
    const float gate_bias = a.expert->gate_bias ? a.expert->gate_bias[row + n] : 0.0f;
    const float up_bias = a.expert->up_bias ? a.expert->up_bias[row + n] : 0.0f;
    return gated(a.activation, Simd::add(Simd::load(gate + at), Simd::set1(gate_bias)),
                 Simd::add(Simd::load(up + at), Simd::set1(up_bias)));
  };
  for (int64_t v = 0; v < vectors; ++v) {
    auto* to = h + v * hidden_vector_stride<D>(a.h_stride);
    if constexpr (is_integer<Tiles<D>>) {
      constexpr int64_t size = Tiles<D>::block;
      for (int64_t n = 0; n < count; n += size) {
        Simd::F block[size];
        for (int64_t i = 0; i < size; ++i) block[i] = result(n + i, v);
        Tiles<D>::quantise_block([&](int i) { return block[i]; },
                                 to + (row + n) / size * kBlockSums<Tiles<D>>);
      }
    } else {
      for (int64_t n = 0; n < count; n += D::group)
        to[(row + n) / D::group] =
            D::join_rounded(result(n, v), D::group > 1 ? result(n + 1, v) : Simd::zero());
    }
  }
}

// to [token][lanes rows] = from [row][stride], lanes tokens; rows from `count` on are zero.
inline void load_transposed(const float* from, int64_t stride, int64_t count, float* to) {
  Simd::F block[Simd::lanes];
#pragma GCC unroll 16
  for (int i = 0; i < Simd::lanes; ++i) block[i] = i < count ? Simd::load(from + i * stride) : Simd::zero();
  Simd::transpose(block);
#pragma GCC unroll 16
  for (int i = 0; i < Simd::lanes; ++i) Simd::store(to + i * Simd::lanes, block[i]);
}

// As finish_down, from c [row][c_stride] of whole vectors of tokens.
inline void finish_down_vectors(const DownArgs& a, int64_t row, int64_t count, int64_t first_token,
                                int64_t tokens, const float* c, int64_t c_stride) {
  for (int64_t n = 0; n < count; n += Simd::lanes)
    for (int64_t m = 0; m < tokens; m += Simd::lanes) {
      alignas(64) float sums[Simd::lanes * Simd::lanes];
      for (int64_t i = m + 2 * Simd::lanes; i < smaller(tokens, m + 3 * Simd::lanes); ++i)
        __builtin_prefetch(a.y + a.rows[first_token + i] * a.y_stride + row + n);
      load_transposed(c + n * c_stride + m, c_stride, count - n, sums);
      finish_down(a, row + n, smaller(Simd::lanes, count - n), first_token + m,
                  smaller(Simd::lanes, tokens - m), sums, Simd::lanes);
    }
}

// [begin, begin + rows) of gate and up for the last tokens, row by row.
template <class D>
void gate_up_rows(const GateUpArgs& a, int64_t begin, int64_t rows, const RowTokens<D>& x, float* c,
                  bool more) {
  using X = typename D::X;
  const ExpertView& e = *a.expert;
  const int64_t first = a.count - x.count;
  const RowRun gate = {e.gate, begin, rows}, up = {e.up, begin, rows}, next = {e.gate, begin + rows, 1};
  multiply_rows<D>(gate, a.hidden, x.x, x.count, c, 2 * kRowRun, &up);
  multiply_rows<D>(up, a.hidden, x.x, x.count, c + kRowRun, 2 * kRowRun, more ? &next : nullptr);
  for (int64_t i = 0; i < rows; i += Simd::lanes)
    finish_gate_up<D>(a, begin + i, smaller(Simd::lanes, rows - i), first, x.count, c + i, c + kRowRun + i,
                      2 * kRowRun);
  if (begin + rows == a.inter)
    for (int64_t m = first; m < a.count; ++m)
      for (int64_t n = a.inter; n < a.h_stride; ++n) static_cast<X*>(a.h)[m * a.h_stride + n] = 0;
}

template <class D>
void gate_up(const GateUpArgs& a) {
  using X = typename D::X;
  const Workspace work(a.scratch, a.blocking, a.hidden);
  const ExpertView& e = *a.expert;
  const int64_t in_vectors = tokens_in_vectors<D>(a.count, e.gate);
  const auto token = [&](int64_t m) { return static_cast<const X*>(a.x) + a.rows[m] * a.x_stride; };
  const RowTokens<D> rest(a.count - in_vectors, a.hidden, work.arranged,
                          [&](int64_t m) { return token(in_vectors + m); });
  if (in_vectors == 0) {
    for (int64_t n = a.begin; n < a.end; n += kRowRun)
      gate_up_rows<D>(a, n, smaller(kRowRun, a.end - n), rest, work.c, n + kRowRun < a.end);
    return;
  }
  const int64_t words = padded_k(a.hidden) / D::group, block = token_block(a.blocking, a.hidden, in_vectors);
  const X* x[kMostTokenBlock];
  for (int64_t m0 = 0; m0 < in_vectors; m0 += block) {
    const int64_t tokens = smaller(block, in_vectors - m0), c_stride = vectors(tokens) * Simd::lanes;
    for (int64_t m = 0; m < tokens; ++m) x[m] = token(m0 + m);
    auto* packed = reinterpret_cast<typename D::Vec*>(work.panel);
    pack_tokens<Tiles<D>>(x, tokens, words, packed);
    const PanelOf<Tiles<D>> panel =
        multiplied_form<Tiles<D>>({packed, vectors(tokens), words}, a.hidden, work.coded);
    constexpr int64_t run = kTileRun<D>;
    float* c_up = work.c + run * c_stride;
    for (int64_t n = a.begin; n < a.end; n += run) {
      const int64_t rows = smaller(run, a.end - n);
      const bool more = n + run < a.end;
      const RowRun gate = {e.gate, n, rows}, up = {e.up, n, rows}, next = {e.gate, n + run, a.end - n - run};
      multiply_panel<D>(gate, a.hidden, panel, work.c, c_stride, work.stage, &up);
      multiply_panel<D>(up, a.hidden, panel, c_up, c_stride, work.stage, more ? &next : nullptr);
      finish_gate_up_vectors<D>(a, n, rows, panel.vectors, work.c, c_up, c_stride,
                                hidden_vectors<D>(a.h, m0, a.h_stride));
      if (m0 + tokens == in_vectors && in_vectors < a.count)  // the rows are in cache now
        gate_up_rows<D>(a, n, rows, rest, work.c, false);
    }
  }
}

// Rows [begin, begin + rows) of down for the last tokens, row by row. `next`: rows that are read after these,
// or null.
template <class D>
void down_rows(const DownArgs& a, int64_t begin, int64_t rows, const RowTokens<D>& h, float* c,
               const RowRun* next) {
  multiply_rows<D>({a.expert->down, begin, rows}, a.inter, h.x, h.count, c, kRowRun, next);
  for (int64_t i = 0; i < rows; i += Simd::lanes)
    finish_down(a, begin + i, smaller(Simd::lanes, rows - i), a.count - h.count, h.count, c + i, kRowRun);
}

template <class D>
void down(const DownArgs& a) {
  using X = typename D::X;
  const Workspace work(a.scratch, a.blocking, a.inter);
  const MatrixView& matrix = a.expert->down;
  const int64_t in_vectors = tokens_in_vectors<D>(a.count, a.expert->gate);
  const RowTokens<D> rest(a.count - in_vectors, a.inter, work.arranged, [&](int64_t m) {
    return static_cast<const X*>(a.h) + (in_vectors + m) * a.h_stride;
  });
  // What is read after rows [n, n + run): further rows of this expert, or the same rows of the next one.
  const bool known = a.next != nullptr;
  const auto after = [&](int64_t n, int64_t run) {
    const bool more = n + run < a.end;
    return RowRun{more || !known ? matrix : a.next->down, more ? n + run : a.begin, run};
  };
  if (in_vectors == 0) {
    for (int64_t n = a.begin; n < a.end; n += kRowRun) {
      const RowRun next = after(n, kRowRun);
      down_rows<D>(a, n, smaller(kRowRun, a.end - n), rest, work.c,
                   n + kRowRun < a.end || known ? &next : nullptr);
    }
    return;
  }
  const int64_t block = token_block(a.blocking, a.inter, in_vectors);
  for (int64_t m0 = 0; m0 < in_vectors; m0 += block) {
    const int64_t tokens = smaller(block, in_vectors - m0), c_stride = vectors(tokens) * Simd::lanes;
    const PanelOf<Tiles<D>> panel = {hidden_vectors<D>(const_cast<void*>(a.h), m0, a.h_stride),
                                     vectors(tokens), hidden_vector_stride<D>(a.h_stride)};
    constexpr int64_t run = kTileRun<D>;
    for (int64_t n = a.begin; n < a.end; n += run) {
      const int64_t rows = smaller(run, a.end - n);
      const RowRun now = {matrix, n, rows}, next = after(n, run);
      multiply_panel<D>(now, a.inter, panel, work.c, c_stride, work.stage,
                        n + run < a.end || known ? &next : nullptr);
      finish_down_vectors(a, n, rows, m0, tokens, work.c, c_stride);
      if (m0 + tokens == in_vectors && in_vectors < a.count) down_rows<D>(a, n, rows, rest, work.c, nullptr);
    }
  }
}

}  // namespace
}  // namespace moerun::cpu
