// Many tokens, weights of bytes and int8 activations: the tile of tile_inl.h with integer sums, which are
// scaled and added up in fp32 after every block of K. Included after a Simd and an integer Dot.
//
//   c[n][t] = row scale(n) * sum over blocks b: weight scale(n, b) * x scale(b, t) * sum over b: w[n] * x[t]
//
// Layout: a vector of tokens is [block][words of 4 codes][token], then its scales and what a sum begins with,
// a register each. Rows lie in place, or are staged bytes. Operations: as tile_inl.h, with one XOR a
// broadcast in place; after every block (8 or 16 words) three operations per sum, of which multiply and
// multiply-add compete with the products: 10 instead of 8, or 18 instead of 16. The fp32 sums live in L1: R V
// registers of integers leave no room.
#pragma once
#include <cstdint>

#include "cpu/kernels/rows_inl.h"
#include "cpu/kernels/unroll_inl.h"
#include "src/types.h"

namespace moerun::cpu {
namespace {

template <class D>
constexpr bool is_integer = requires { D::integer; };
template <class D>
constexpr bool is_staged_bytes = requires { D::staged_bytes; };

// Quantised activations of some vectors of tokens.
template <class D>
struct CodedPanel {
  const typename D::Sum* data;
  int64_t vectors;
  int64_t stride;  // Sums from one vector's first word to the next one's

  CodedPanel part(int64_t first, int64_t count) const { return {data + first * stride, count, stride}; }
};

template <class D>
constexpr int64_t kBlockWords = D::block / 4;
template <class D>
constexpr int64_t kBlockSums = kBlockWords<D> + 2;  // with scale and beginning

// total[r][v] += scale of (r, v) * integer sums of one block
template <class D, int R, int V, class Rows>
__attribute__((always_inline)) inline void add_int8_block(const Rows& rows, const char* w,
                                                          const typename D::Sum* block, int64_t stride,
                                                          int64_t words, int64_t k0,
                                                          float (&total)[R][V * Simd::lanes]) {
  typename D::Sum sum[R][V];
  unrolled<R * V>([&](auto i) __attribute__((always_inline)) {
    sum[i / V][i % V] = block[i % V * stride + kBlockWords<D> + 1];
  });
#pragma GCC unroll 1
  for (int64_t k = 0; k < words; ++k) {
    typename D::Sum x[V];
    unrolled<V>([&](auto v) __attribute__((always_inline)) { x[v] = block[v * stride + k]; });
    unrolled<R>([&](auto r) __attribute__((always_inline)) {
      const typename D::Sum weight = D::broadcast(w + r * rows.stride + k * 4);
      unrolled<V>([&](auto v) __attribute__((always_inline)) {
        sum[r][v] = D::multiply_add(weight, x[v], sum[r][v]);
      });
    });
  }
  unrolled<R>([&](auto r) __attribute__((always_inline)) {
    const float weight_scale =
        D::block_scales ? D::block_scale(rows.scales + r * rows.scale_stride, k0) : 1.0f;
    unrolled<V>([&](auto v) __attribute__((always_inline)) {
      Simd::F scale = D::as_float(block[v * stride + kBlockWords<D>]);
      if constexpr (D::block_scales) scale = Simd::mul(scale, Simd::set1(weight_scale));
      float* to = total[r] + v * Simd::lanes;
      Simd::store(to, Simd::fmadd(D::to_float(sum[r][v]), scale, Simd::load(to)));
    });
  });
}

// Brings block b of R rows into L2, and with the first one their scales. `rows` lie as in the matrix.
template <class D, int R, class Rows>
__attribute__((always_inline)) inline void fetch_block(const Rows& rows, int64_t b) {
  const auto fetch = [](const char* from, int64_t stride) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) __builtin_prefetch(from + r * stride, 0, 2);
  };
  for (int64_t i = (b * D::block_bytes + 63) / 64 * 64; i < (b + 1) * D::block_bytes; i += 64)
    fetch(rows.data + i, rows.stride);
  if (D::block_scales && b == 0)
    for (int64_t i = 0; i < rows.scale_stride; i += 64) fetch(rows.scales + i, rows.scale_stride);
}

template <class D, int R, int V, class Rows>
void multiply_int8_tile(const Rows& rows, const CodedPanel<D>& panel, int64_t words, float* c,
                        int64_t c_stride, const Rows& soon) {
  alignas(64) float total[R][V * Simd::lanes];
  for (auto& row : total)
    for (int v = 0; v < V; ++v) Simd::store(row + v * Simd::lanes, Simd::zero());
  for (int64_t b = 0; b * kBlockWords<D> < words; ++b) {
    if (soon.data) fetch_block<D, R>(soon, b);
    add_int8_block<D, R, V>(rows, rows.data + b * D::block, panel.data + b * kBlockSums<D>, panel.stride,
                            smaller(kBlockWords<D>, words - b * kBlockWords<D>), b * D::block, total);
  }
  for (int r = 0; r < R; ++r) {
    float scale = 1.0f;
    if constexpr (!D::block_scales)
      __builtin_memcpy(&scale, rows.scales + r * rows.scale_stride, sizeof(scale));
    for (int v = 0; v < V; ++v)
      Simd::store(c + r * c_stride + v * Simd::lanes,
                  Simd::mul(Simd::set1(scale), Simd::load(total[r] + v * Simd::lanes)));
  }
}

// From tokens packed as bf16 (pack_inl.h): `words` words of K of each of `panel`'s vectors; the last may be
// followed by anything.
template <class D, class Packed>
CodedPanel<D> quantise_panel(const Packed& packed, int64_t words, typename D::Sum* to) {
  constexpr int64_t block_words = D::block / D::group;
  const int64_t stride = (words + block_words - 1) / block_words * kBlockSums<D>;
  for (int64_t v = 0; v < packed.vectors; ++v)
    for (int64_t b = 0, k = 0; k < words; ++b, k += block_words)
      D::quantise_block(D::unpacked(packed.data + v * packed.stride + k, smaller(block_words, words - k)),
                        to + v * stride + b * kBlockSums<D>);
  return {to, packed.vectors, stride};
}

}  // namespace
}  // namespace moerun::cpu
