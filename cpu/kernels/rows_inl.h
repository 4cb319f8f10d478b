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

constexpr int kRowTokens = 4;              // tokens per pass; with more, x and the stream compete for L1
constexpr int64_t kPrefetchBytes = 4096;   // ahead in the stream, a page: its address is translated early too
constexpr int64_t kPassBytes = 128 << 10;  // of rows that are read again for further tokens; a part of any L2

template <class D, int M, int U>
inline void store_sums(typename D::Acc (&sum)[U][M], float* c, int64_t c_stride, float scale = 1.0f) {
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) {
    for (int u = 1; u < U; ++u) sum[0][m] = Simd::add(sum[0][m], sum[u][m]);
    c[m * c_stride] = scale * Simd::sum(sum[0][m]);
  }
}

// Brings in what lies kPrefetchBytes ahead of `bytes` that are about to be read.
inline void prefetch_ahead(const char* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i + kPrefetchBytes);
}

// Plain weights.
template <class D, int M>
inline void dot_row(typename D::Row row, int64_t k_count, const typename D::RowX* const* x, float* c,
                    int64_t c_stride) {
  constexpr int unroll = M <= 2 ? 4 : 2;
  typename D::Acc sum[unroll][M];
  for (auto& us : sum)
    for (auto& s : us) s = Simd::zero();
  int64_t k = 0;
  for (; k + D::step * unroll <= k_count; k += D::step * unroll) {
    prefetch_ahead(D::address(row, k), D::step_bytes * unroll);
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
                           int64_t c_stride) {
  constexpr int unroll = M <= 2 ? 4 : 2;
  typename D::Acc sum[unroll][M];
  for (auto& us : sum)
    for (auto& s : us) s = Simd::zero();
  int64_t k = 0;
  for (; k + D::block * unroll <= k_count; k += D::block * unroll) {
    prefetch_ahead(D::address(row, k), D::block_bytes * unroll);
#pragma GCC unroll 4
    for (int u = 0; u < unroll; ++u) D::template add_block<M>(row, k + u * D::block, x, sum[u]);
  }
  for (; k < k_count; k += D::block) D::template add_block<M>(row, k, x, sum[0]);
  store_sums<D, M>(sum, c, c_stride, D::row_scale(row));
}

template <class D, int M>
inline void one_row(typename D::Row row, int64_t k_count, const typename D::RowX* const* x, float* c,
                    int64_t c_stride) {
  if constexpr (D::scaled)
    dot_scaled_row<D, M>(row, k_count, x, c, c_stride);
  else
    dot_row<D, M>(row, k_count, x, c, c_stride);
}

// c[m][n] for rows [first, first + rows), any number of tokens. Rows go in blocks that stay in L2 for the
// passes of further tokens, while the activations of one pass stay in L1. While the last row comes from
// memory, the beginning of what will be read next is prefetched, so that the stream does not pause there.
template <class D>
void dot_rows(const MatrixView& matrix, int64_t first, int64_t rows, int64_t k_count,
              const typename D::RowX* const* x, int64_t tokens, float* c, int64_t c_stride,
              const char* then) {
  const int64_t fitting = kPassBytes / (D::row_bytes(matrix) + 1), block = fitting < 1 ? 1 : fitting;
  for (int64_t n0 = 0; n0 < rows; n0 += block) {
    const int64_t n1 = smaller(n0 + block, rows);
    for (int64_t m = 0; m < tokens; m += kRowTokens) {
      const auto pass = tokens - m == 1   ? one_row<D, 1>
                        : tokens - m == 2 ? one_row<D, 2>
                        : tokens - m == 3 ? one_row<D, 3>
                                          : one_row<D, 4>;
      for (int64_t n = n0; n < n1; ++n) {
        if (m == 0 && n == rows - 1 && then)
          for (int64_t i = 0; i < 1024; i += 64) __builtin_prefetch(then + i);
        pass(D::row(matrix, first + n), k_count, x + m, c + m * c_stride + n, c_stride);
      }
    }
  }
}

}  // namespace
}  // namespace moerun::cpu
