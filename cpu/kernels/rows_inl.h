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

template <class D, int M, int U>
inline void store_sums(typename D::Acc (&sum)[U][M], float* c, int64_t c_stride, float scale = 1.0f) {
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) {
    for (int u = 1; u < U; ++u) sum[0][m] = Simd::add(sum[0][m], sum[u][m]);
    c[m * c_stride] = scale * Simd::sum(sum[0][m]);
  }
}

// Brings in what lies `ahead` of `bytes` that are about to be read.
inline void prefetch_ahead(const char* from, int64_t bytes, int64_t ahead = kPrefetchBytes) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(from) + static_cast<uintptr_t>(ahead);
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(reinterpret_cast<const void*>(at + i));
}

// Plain weights.
template <class D, int M>
inline void dot_row(typename D::Row row, int64_t k_count, const typename D::RowX* const* x, float* c,
                    int64_t c_stride, int64_t ahead) {
  constexpr int unroll = M <= 2 ? 4 : 2;
  typename D::Acc sum[unroll][M];
  for (auto& us : sum)
    for (auto& s : us) s = Simd::zero();
  int64_t k = 0;
  for (; k + D::step * unroll <= k_count; k += D::step * unroll) {
    prefetch_ahead(D::address(row, k), D::step_bytes * unroll, ahead);
#pragma GCC unroll 4
    for (int u = 0; u < unroll; ++u) {
      const typename D::Vec weights = D::weights(row, k + u * D::step);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m)
        sum[u][m] = D::multiply_add(weights, D::activations(x[m] + k + u * D::step), sum[u][m]);
    }
  }
  for (; k < k_count; k += D::step) {
    const int64_t left = k_count - k;
    const typename D::Vec weights =
        left >= D::step ? D::weights(row, k) : D::weights(row, k, static_cast<int>(left));
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) sum[0][m] = D::multiply_add(weights, D::activations(x[m] + k), sum[0][m]);
  }
  store_sums<D, M>(sum, c, c_stride);
}

// Codes with scales, a block of K at a time. Rows are filled up with zeros.
template <class D, int M>
inline void dot_scaled_row(typename D::Row row, int64_t k_count, const typename D::RowX* const* x, float* c,
                           int64_t c_stride, int64_t ahead) {
  constexpr int unroll = M <= 2 ? 4 : 2;
  typename D::Acc sum[unroll][M];
  for (auto& us : sum)
    for (auto& s : us) s = Simd::zero();
  int64_t k = 0;
  for (; k + D::block * unroll <= k_count; k += D::block * unroll) {
    prefetch_ahead(D::address(row, k), D::block_bytes * unroll, ahead);
#pragma GCC unroll 4
    for (int u = 0; u < unroll; ++u) D::template add_block<M>(row, k + u * D::block, x, sum[u]);
  }
  for (; k < k_count; k += D::block) {
    prefetch_ahead(D::address(row, k), D::block_bytes, ahead);
    D::template add_block<M>(row, k, x, sum[0]);
  }
  store_sums<D, M>(sum, c, c_stride, D::row_scale(row));
}

template <class D, int M>
inline void one_row(typename D::Row row, int64_t k_count, const typename D::RowX* const* x, float* c,
                    int64_t c_stride, int64_t ahead) {
  if constexpr (D::scaled)
    dot_scaled_row<D, M>(row, k_count, x, c, c_stride, ahead);
  else
    dot_row<D, M>(row, k_count, x, c, c_stride, ahead);
}

// Codes have a second stream, of scales.
template <class D>
inline void prefetch_scales(typename D::Row row, int64_t bytes, int64_t ahead) {
  if constexpr (D::scaled) prefetch_ahead(row.scales, bytes, ahead);
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
  const int64_t to_next = then ? D::address(*then, 0) - end : 0;
  for (int64_t n0 = 0; n0 < rows; n0 += block) {
    const int64_t n1 = smaller(n0 + block, rows);
    for (int64_t m = 0; m < tokens; m += kRowTokens) {
      const auto pass = tokens - m == 1   ? one_row<D, 1>
                        : tokens - m == 2 ? one_row<D, 2>
                        : tokens - m == 3 ? one_row<D, 3>
                                          : one_row<D, 4>;
      for (int64_t n = n0; n < n1; ++n) {
        const typename D::Row row = D::row(matrix, first + n);
        const bool near_end = end - D::address(row, 0) <= kPrefetchBytes;
        if (m == 0) prefetch_scales<D>(row, kScaleBytes, kScalesAhead);
        if (m == 0 && near_end && then) prefetch_scales<D>(*then, 2 * kScalesAhead, 0);
        pass(row, k_count, x + m, c + m * c_stride + n, c_stride, kPrefetchBytes + (near_end ? to_next : 0));
      }
    }
  }
}

}  // namespace
}  // namespace moerun::cpu
