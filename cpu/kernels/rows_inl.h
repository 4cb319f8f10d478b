// Few tokens: dot products of whole weight rows, read once, in order, from memory. Included after a Simd and a Dot.
//
//   c[m][n] = row(n) . x[m]          m < M <= 4 tokens, n < rows
// Layout: rows K-contiguous. One thread. Bytes: the rows once; the activations stay in L1.
// Bound: memory bandwidth; per 64 bytes of weights M multiply-adds and M loads from L1, so up to M = 4 it holds with
// room to spare. One row at a time is what the hardware prefetcher likes best (measured: four rows side by side lose
// a fifth). K is unrolled so that enough independent sums hide the latency of the multiply-adds.
#pragma once
#include <cstdint>

namespace moerun::cpu {
namespace {

constexpr int kRowTokens = 4;             // tokens per pass; with more, x and the stream compete for L1
constexpr int64_t kPrefetchBytes = 1024;  // ahead in the stream; heuristic, flat between 512 and 4096 (measured)

template <class D, int M>
inline void dot_row(const char* w, int64_t k_count, const typename D::X* const* x, float* c, int64_t c_stride) {
  constexpr int unroll = M == 1 ? 4 : M == 2 ? 4 : 2;
  constexpr int64_t bytes = D::step * size_of(D::weight_type);
  typename D::Acc sum[unroll][M];
  for (auto& us : sum)
    for (auto& s : us) s = Simd::zero();
  int64_t k = 0;
  for (; k + D::step * unroll <= k_count; k += D::step * unroll) {
#pragma GCC unroll 4
    for (int u = 0; u < unroll; ++u) {
      __builtin_prefetch(w + kPrefetchBytes);
      const typename D::Vec weights = D::weights(w);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m)
        sum[u][m] = D::multiply_add(weights, D::activations(x[m] + k + u * D::step), sum[u][m]);
      w += bytes;
    }
  }
  for (; k + D::step <= k_count; k += D::step, w += bytes) {
    const typename D::Vec weights = D::weights(w);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) sum[0][m] = D::multiply_add(weights, D::activations(x[m] + k), sum[0][m]);
  }
  if (k < k_count) {
    const typename D::Vec weights = D::weights(w, static_cast<int>(k_count - k));
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) sum[0][m] = D::multiply_add(weights, D::activations(x[m] + k), sum[0][m]);
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) {
    for (int u = 1; u < unroll; ++u) sum[0][m] = Simd::add(sum[0][m], sum[u][m]);
    c[m * c_stride] = Simd::sum(sum[0][m]);
  }
}

// c[m][n] for n < rows, any number of tokens: further passes find the block of rows in cache.
template <class D>
void dot_rows(const char* w, int64_t row_bytes, int64_t rows, int64_t k_count, const typename D::X* const* x,
              int64_t tokens, float* c, int64_t c_stride) {
  for (int64_t n = 0; n < rows; ++n) {
    const char* row = w + n * row_bytes;
    for (int64_t m = 0; m < tokens; m += kRowTokens) {
      const auto pass = tokens - m == 1   ? dot_row<D, 1>
                        : tokens - m == 2 ? dot_row<D, 2>
                        : tokens - m == 3 ? dot_row<D, 3>
                                          : dot_row<D, 4>;
      pass(row, k_count, x + m, c + m * c_stride + n, c_stride);
    }
  }
}

}  // namespace
}  // namespace moerun::cpu
