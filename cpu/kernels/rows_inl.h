// Few tokens: dot products of whole weight rows, read once, in order, from memory. Included after a Simd and
// a Dot.
//
//   c[m][n] = row(n) . x[m]          m < M <= 4 tokens, n < rows
// Layout: rows K-contiguous. One thread. Bytes: the rows once; the activations stay in L1.
// Bound: memory bandwidth; per 64 bytes of weights M multiply-adds and M loads from L1, so up to M = 4 it
// holds with room to spare. One row at a time is what the hardware prefetcher likes best (measured: four rows
// side by side lose a fifth). K is unrolled so that enough independent sums hide the latency of the
// multiply-adds.
#pragma once
#include <cstdint>

namespace moerun::cpu {
namespace {

inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}  // std::min would be linked across instruction sets

constexpr int kRowTokens = 4;             // tokens per pass; with more, x and the stream compete for L1
constexpr int64_t kPrefetchBytes = 4096;  // ahead in the stream, a page: its address is translated early too
constexpr int64_t kScalesAhead = 512, kScaleBytes = 128;  // of scales, and how many a row has at most, about
constexpr int64_t kPassBytes = 128 << 10;  // of rows that are read again for further tokens; a part of any L2

// Brings in what lies `ahead` of `bytes` that are about to be read.
[[gnu::always_inline]] inline void prefetch_ahead(const char* from, int64_t bytes,
                                                  int64_t ahead = kPrefetchBytes) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(from) + static_cast<uintptr_t>(ahead);
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(reinterpret_cast<const void*>(at + i));
}

// What is multiplied at a time: a vector of plain weights, or a block of codes, which rows are filled up to.
template <class D>
constexpr int64_t unit_elements() {
  if constexpr (D::scaled)
    return D::block;
  else
    return D::step;
}
template <class D>
constexpr int64_t unit_bytes() {
  if constexpr (D::scaled)
    return D::block_bytes;
  else
    return D::step_bytes;
}

// sum[m] += row[k ..] . x[m][k ..] over one unit; `whole` is false for plain weights at the end of a row.
template <class D, int M>
[[gnu::always_inline]] inline void add_unit(const typename D::Row& row, int64_t k, int64_t k_count,
                                            const typename D::RowX* const* x, typename D::Acc (&sum)[M],
                                            bool whole) {
  if constexpr (D::scaled) {
    D::template add_block<M>(row, k, x, sum);
  } else {
    const typename D::Vec weights =
        whole ? D::weights(row, k) : D::weights(row, k, static_cast<int>(k_count - k));
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) sum[m] = D::multiply_add(weights, D::activations(x[m] + k), sum[m]);
  }
}

// c[m] = row . x[m]. Inlined into the loop over rows, so that sums stay in registers: the rows of 4-bit codes
// are short.
template <class D, int M>
[[gnu::always_inline]] inline void dot_row(const typename D::Row& row, int64_t k_count,
                                           const typename D::RowX* const* x, float* c, int64_t c_stride,
                                           int64_t ahead) {
  constexpr int unroll = M <= 2 ? 4 : 2;
  constexpr int64_t unit = unit_elements<D>(), bytes = unit_bytes<D>();
  typename D::Acc sum[unroll][M];
  for (auto& us : sum)
    for (auto& s : us) s = Simd::zero();
  int64_t k = 0;
  for (; k + unit * unroll <= k_count; k += unit * unroll) {
    prefetch_ahead(D::address(row, k), bytes * unroll, ahead);
#pragma GCC unroll 4
    for (int u = 0; u < unroll; ++u) add_unit<D, M>(row, k + u * unit, k_count, x, sum[u], true);
  }
  for (; k < k_count; k += unit) {
    if constexpr (D::scaled) prefetch_ahead(D::address(row, k), bytes, ahead);
    add_unit<D, M>(row, k, k_count, x, sum[0], k + unit <= k_count);
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int u = 1; u < unroll; ++u) sum[0][m] = Simd::add(sum[0][m], sum[u][m]);
    const float total = Simd::sum(sum[0][m]);
    if constexpr (D::scaled)
      c[m * c_stride] = D::row_scale(row) * total;
    else
      c[m * c_stride] = total;
  }
}

// Codes have a second stream, of scales.
template <class D>
[[gnu::always_inline]] inline void prefetch_scales(const typename D::Row& row, int64_t bytes, int64_t ahead) {
  if constexpr (D::scaled) prefetch_ahead(row.scales, bytes, ahead);
}

// Rows [first, last) of a run that ends before `end`, for M tokens; `fetch`: whether the rows come from
// memory. `then`: the row that is read after the run, or null.
template <class D, int M>
void dot_pass(const MatrixView& matrix, int64_t first, int64_t last, int64_t k_count,
              const typename D::RowX* const* x, float* c, int64_t c_stride, const char* end,
              const typename D::Row* then, bool fetch) {
  const int64_t to_next = then ? D::address(*then, 0) - end : 0;
  for (int64_t n = first; n < last; ++n, ++c) {
    const typename D::Row row = D::row(matrix, n);
    const bool near_end = end - D::address(row, 0) <= kPrefetchBytes;
    if (fetch) prefetch_scales<D>(row, kScaleBytes, kScalesAhead);
    if (fetch && near_end && then) prefetch_scales<D>(*then, 2 * kScalesAhead, 0);
    dot_row<D, M>(row, k_count, x, c, c_stride, kPrefetchBytes + (near_end ? to_next : 0));
  }
}

// c[m][n] for rows [first, first + rows), any number of tokens. Rows go in blocks that stay in L2 for the
// passes of further tokens, while the activations of one pass stay in L1. `then`: the row that is read next,
// or null; towards the end its memory is prefetched, so that the stream does not pause there.
template <class D>
void dot_rows(const MatrixView& matrix, int64_t first, int64_t rows, int64_t k_count,
              const typename D::RowX* const* x, int64_t tokens, float* c, int64_t c_stride,
              const typename D::Row* then) {
  const int64_t fitting = kPassBytes / (D::row_bytes(matrix) + 1), block = fitting < 1 ? 1 : fitting;
  const char* end = D::address(D::row(matrix, first + rows - 1), 0) + D::row_bytes(matrix);
  for (int64_t n0 = 0; n0 < rows; n0 += block) {
    const int64_t n1 = smaller(n0 + block, rows);
    for (int64_t m = 0; m < tokens; m += kRowTokens) {
      const auto pass = tokens - m == 1   ? dot_pass<D, 1>
                        : tokens - m == 2 ? dot_pass<D, 2>
                        : tokens - m == 3 ? dot_pass<D, 3>
                                          : dot_pass<D, 4>;
      pass(matrix, first + n0, first + n1, k_count, x + m, c + m * c_stride + n0, c_stride, end, then,
           m == 0);
    }
  }
}

}  // namespace
}  // namespace moerun::cpu
