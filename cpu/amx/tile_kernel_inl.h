// Many tokens with AMX: what cpu/kernels/tile_inl.h does with vector registers, in tiles.
//
//   c[n][v * 16 + t] = row(n) . x[v * 16 + t]
//
// Weights are the A operand: 16 rows x 32 elements of K, as they lie. Packed tokens are B: 16 words of one
// vector of tokens. C is 16 rows x 16 tokens in fp32, all of K at once; 2 x 2 of them share two tiles of A
// and two of B. One thread. Per 32 elements of K: 4 products of 16 cycles, 4 loads of 8 cycles and 1 KiB.
// Bound: arithmetic, if L1 and L2 deliver 64 bytes a cycle. Weaknesses: rows a multiple of 4 KiB apart share
// a set of L1, so that both operands come from L2; not measured on a machine with AMX yet.
#pragma once
#include <cstdint>
#include <cstring>

namespace moerun::cpu {
namespace {

constexpr int kTileRows = 16, kTileTokens = 16, kTileWords = 16;

// One vector of packed tokens, [words][16 tokens] words, tile by tile.
class PackedTokens {
 public:
  PackedTokens(const void* data, int64_t words)
      : data_(static_cast<const char*>(data)), whole_(words / kTileWords * kTileWords) {
    if (words > whole_) std::memcpy(rest_, data_ + whole_ * kWordBytes, (words - whole_) * kWordBytes);
  }
  // The tile of words from k on, with zeros behind the last word; rows are kWordBytes apart.
  const void* tile(int64_t k) const { return k < whole_ ? data_ + k * kWordBytes : rest_; }
  static constexpr int64_t kWordBytes = 64;

 private:
  const char* data_;
  int64_t whole_;
  alignas(64) char rest_[kTileWords * kWordBytes] = {};
};

// R x V tiles of C, R and V being 1 or 2; second[r] and [v] are not used where there is one. Fetches as many
// rows as it multiplies from `soon`.
template <class Tiles, int R, int V>
void multiply_tiles(const typename Tiles::Session& session, const char* const (&rows)[2], int64_t row_stride,
                    const PackedTokens& first, const PackedTokens& second, int64_t words,
                    float* const (&c)[2], int64_t c_stride, const char* soon, int64_t soon_stride) {
  typename Tiles::template Tile<0> c00(session);
  typename Tiles::template Tile<1> c01(session);
  typename Tiles::template Tile<2> c10(session);
  typename Tiles::template Tile<3> c11(session);
  typename Tiles::template Tile<4> a0(session);
  typename Tiles::template Tile<5> a1(session);
  typename Tiles::template Tile<6> b0(session);
  typename Tiles::template Tile<7> b1(session);
  c00.zero();
  if constexpr (V > 1) c01.zero();
  if constexpr (R > 1) c10.zero();
  if constexpr (R > 1 && V > 1) c11.zero();
  for (int64_t k = 0; k < words; k += kTileWords) {
    if (soon)  // into L2, as in tile_inl.h
      for (int r = 0; r < R * kTileRows; ++r) __builtin_prefetch(soon + r * soon_stride + k * 4, 0, 2);
    a0.load(rows[0] + k * 4, row_stride);
    b0.load(first.tile(k), PackedTokens::kWordBytes);
    c00.add_bf16(a0, b0);
    if constexpr (V > 1) {
      b1.load(second.tile(k), PackedTokens::kWordBytes);
      c01.add_bf16(a0, b1);
    }
    if constexpr (R > 1) {
      a1.load(rows[1] + k * 4, row_stride);
      c10.add_bf16(a1, b0);
      if constexpr (V > 1) c11.add_bf16(a1, b1);
    }
  }
  const int64_t c_bytes = c_stride * int64_t{sizeof(float)};
  c00.store(c[0], c_bytes);
  if constexpr (V > 1) c01.store(c[0] + kTileTokens, c_bytes);
  if constexpr (R > 1) c10.store(c[1], c_bytes);
  if constexpr (R > 1 && V > 1) c11.store(c[1] + kTileTokens, c_bytes);
}

// `count` rows times all vectors: what multiply_group of tile_inl.h does, with its Rows and Panel. Rows that
// do not fill a tile are done with some that are done already, or in tiles of fewer rows if there are none.
template <class Tiles, class Rows, class Panel>
void multiply_group_in_tiles(const Rows& rows, int64_t count, const Panel& panel, int64_t words, float* c,
                             int64_t c_stride, bool in_cache, const Rows& after) {
  if (count == 0) return;
  const auto smaller = [](int64_t a, int64_t b) { return a < b ? a : b; };
  const int64_t height = smaller(kTileRows, count);
  const typename Tiles::Session session(static_cast<int>(height));
  for (int64_t n = 0; n < count; n += 2 * height) {
    const bool two_rows = n + height < count, last = n + 2 * height >= count;
    const int64_t first = smaller(n, count - height), second = smaller(n + height, count - height);
    const char* const from[2] = {rows.data + first * rows.stride, rows.data + second * rows.stride};
    float* const to[2] = {c + first * c_stride, c + second * c_stride};
    const Rows following = {from[1] + height * rows.stride, rows.stride};
    const Rows next = last ? after : in_cache ? Rows{} : following;
    for (int64_t v = 0; v < panel.vectors; v += 2) {
      const bool two_vectors = v + 1 < panel.vectors;
      const PackedTokens x0(panel.data + v * panel.stride, words),
          x1(panel.data + (two_vectors ? v + 1 : v) * panel.stride, words);
      float* const at[2] = {to[0] + v * kTileTokens, to[1] + v * kTileTokens};
      const Rows soon = v + 2 >= panel.vectors ? next : Rows{};
      const auto multiply = two_rows ? two_vectors ? multiply_tiles<Tiles, 2, 2> : multiply_tiles<Tiles, 2, 1>
                            : two_vectors ? multiply_tiles<Tiles, 1, 2>
                                          : multiply_tiles<Tiles, 1, 1>;
      multiply(session, from, rows.stride, x0, x1, words, at, c_stride, soon.data, soon.stride);
    }
  }
}

// Four independent chains of products.
template <class Tiles>
double tile_peak(int64_t rounds, float* sink) {
  const typename Tiles::Session session(kTileRows);
  typename Tiles::template Tile<0> c0(session);
  typename Tiles::template Tile<1> c1(session);
  typename Tiles::template Tile<2> c2(session);
  typename Tiles::template Tile<3> c3(session);
  typename Tiles::template Tile<4> a(session);
  typename Tiles::template Tile<6> b(session);
  c0.zero(), c1.zero(), c2.zero(), c3.zero();
  alignas(64) float zeros[kTileRows * kTileTokens] = {};
  a.load(zeros, 64), b.load(zeros, 64);
  for (int64_t r = 0; r < rounds; ++r) {
    c0.add_bf16(a, b), c1.add_bf16(a, b);
    c2.add_bf16(a, b), c3.add_bf16(a, b);
  }
  c3.store(zeros, 64);
  *sink = zeros[0];
  return 2.0 * rounds * 4 * kTileRows * kTileTokens * 2 * kTileWords;
}

}  // namespace
}  // namespace moerun::cpu
