// Many tokens: tiles of weight rows times vectors of tokens. Included after a Simd and a Dot.
//
//   c[n][v * lanes + t] = row(n) . x[v * lanes + t]          all of K at once, sums in registers
//
// Layout: tokens are packed (pack_inl.h): one register holds one word of K (`group` elements) of `lanes`
// tokens. Weights are not: a word of a row is broadcast from where the row lies. So a multiply-add needs no
// shuffles, sums need no horizontal additions, and only the small side of the product is ever rearranged.
// One thread. Per word of K a tile of R rows and V vectors does R V multiply-adds with R broadcasts and V
// loads; the vectors come from L2 in order. Bytes: the rows once, while their successors are prefetched line
// by line. Bound: arithmetic; 8 x 3 and 6 x 4 reach 97 % of peak at K = 2048 with the rows coming from memory
// (measured). Not more than 8 rows a tile: with rows a multiple of 4 KiB apart, as many ways of one set of L1
// are in use. Weakness: tokens are rounded up to whole vectors; rows_inl.h takes a small remainder.
#pragma once
#include <cstdint>

#include "cpu/kernels/int8_tile_inl.h"
#include "cpu/kernels/rows_inl.h"
#include "cpu/kernels/stage_inl.h"
#include "src/types.h"

namespace moerun::cpu {
namespace {

// Rows that are staged at a time, and a multiple of every tile's rows.
constexpr int64_t kGroupRows = 24;

// Rows that are staged as bytes at a time: those of one tile, so that they are multiplied from L1.
constexpr int64_t kByteRows = 8;

// Vectors in one pass over a tile's rows.
template <class D>
constexpr int most_vectors() {
  int most = Simd::tile_vectors;
  if constexpr (is_staged_bytes<D>)
    while (Simd::tile_rows[most - 1] != kByteRows) --most;
  return most;
}

// A Dot may bring its own way to multiply a group of rows (cpu/amx/tile_kernel_inl.h).
template <class D>
concept HasOwnTiles = requires { &D::multiply_group; };

template <class D>
constexpr int64_t group_rows() {
  if constexpr (HasOwnTiles<D>)
    return D::group_rows;
  else
    return kGroupRows;
}

// Packed activations of some vectors of tokens.
template <class D>
struct Panel {
  const typename D::Vec* data;  // [vectors][stride]
  int64_t vectors;
  int64_t stride;  // Vecs from one vector's first word to the next one's

  Panel part(int64_t first, int64_t count) const { return {data + first * stride, count, stride}; }
};

// An integer Dot multiplies activations that were quantised after packing.
template <class D, bool Integer>
struct MultipliedPanel {
  using Type = Panel<D>;
};
template <class D>
struct MultipliedPanel<D, true> {
  using Type = CodedPanel<D>;
};
template <class D>
using PanelOf = typename MultipliedPanel<D, is_integer<D>>::Type;

// Staged rows are multiplied by another Dot than the one that reads them: tiles are compiled for few types.
template <class D>
using Tiles = typename D::Tiles;

template <class D>
PanelOf<D> multiplied_form(const Panel<D>& packed, int64_t k_count, void* memory) {
  if constexpr (is_integer<D>)
    return quantise_panel<D>(packed, (k_count + D::group - 1) / D::group,
                             static_cast<typename D::Sum*>(memory));
  else
    return packed;
}

// Rows of what is multiplied, contiguous in K, `stride` bytes apart. Scales only with an integer Dot.
struct Rows {
  const char* data = nullptr;
  int64_t stride = 0;
  const char* scales = nullptr;
  int64_t scale_stride = 0;  // bytes

  Rows from(int64_t n) const { return {data + n * stride, stride, scales + n * scale_stride, scale_stride}; }
};

// `soon`: as many rows again, which will be multiplied next; null if they need no prefetching.
template <class D, int R, int V>
void multiply_tile(const Rows& rows, const Panel<D>& panel, int64_t words, float* c, int64_t c_stride,
                   const Rows& soon) {
  constexpr int64_t kLineWords = 64 / 4;
  const char* w[R];
  typename D::Acc sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    w[r] = rows.data + r * rows.stride;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = Simd::zero();
  }
  for (int64_t begin = 0; begin < words; begin += kLineWords) {
    if (soon.data)  // into L2: L1 has too few places for lines under way (measured: 15 GB/s at most)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) __builtin_prefetch(soon.data + r * soon.stride + begin * 4, 0, 2);
    const int64_t end = smaller(begin + kLineWords, words);
#pragma GCC unroll 1
    for (int64_t k = begin; k < end; ++k) {
      typename D::Vec x[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) x[v] = panel.data[v * panel.stride + k];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const typename D::Vec weight = D::broadcast(w[r] + k * 4);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[r][v] = D::multiply_add(weight, x[v], sum[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) Simd::store(c + r * c_stride + v * Simd::lanes, sum[r][v]);
}

template <class D>
using Tile = void (*)(const Rows&, const PanelOf<D>&, int64_t, float*, int64_t, const Rows&);

template <class D, int R, int V>
constexpr Tile<D> tile() {
  if constexpr (is_integer<D>)
    return multiply_int8_tile<D, R, V, Rows>;
  else
    return multiply_tile<D, R, V>;
}

template <class D, int R>
inline Tile<D> tile_of(int64_t vectors) {
  return vectors == 1   ? tile<D, R, 1>()
         : vectors == 2 ? tile<D, R, 2>()
         : vectors == 3 ? tile<D, R, 3>()
                        : tile<D, R, most_vectors<D>()>();
}

// R rows times all vectors, in as few passes as registers allow, of as even a size as can be; the rows stay
// in L1.
template <class D, int R>
inline void multiply_rows_of_tile(const Rows& rows, const PanelOf<D>& panel, int64_t words, float* c,
                                  int64_t c_stride, const Rows& soon) {
  const int64_t passes = (panel.vectors + most_vectors<D>() - 1) / most_vectors<D>();
  for (int64_t p = 0, v = 0; p < passes; ++p) {
    const int64_t size = (panel.vectors - v + passes - p - 1) / (passes - p);
    tile_of<D, R>(size)(rows, panel.part(v, size), words, c + v * Simd::lanes, c_stride,
                        p + 1 == passes ? soon : Rows{});
    v += size;
  }
}

// `count` rows times all vectors, R at a time. Rows that do not fill a tile are done with some that are done
// already, or, if there are none, one by one. `after`: rows to prefetch at the end, or null; so are the
// tiles' successors. Of rows that are `in_cache`, a tile prefetches its counterpart among those `after`.
template <class D, int R>
void multiply_group(const Rows& rows, int64_t count, const PanelOf<D>& panel, int64_t words, float* c,
                    int64_t c_stride, bool in_cache, const Rows& after) {
  if (count < R) {
    for (int64_t n = 0; n < count; ++n)
      multiply_rows_of_tile<D, 1>(rows.from(n), panel, words, c + n * c_stride, c_stride, Rows{});
    return;
  }
  for (int64_t n = 0; n < count; n += R) {
    const int64_t from = smaller(n, count - R);
    const Rows soon = in_cache         ? after.data ? after.from(from) : Rows{}
                      : n + R >= count ? after
                                       : rows.from(from + R);
    multiply_rows_of_tile<D, R>(rows.from(from), panel, words, c + from * c_stride, c_stride, soon);
  }
}

// How many rows a tile has when the largest pass over the vectors has as many as `vectors` need.
template <class D>
inline auto group_of(int64_t vectors) {
  if constexpr (HasOwnTiles<D>) {
    return &D::multiply_group;
  } else {
    const int64_t passes = (vectors + most_vectors<D>() - 1) / most_vectors<D>();
    const int64_t largest = (vectors + passes - 1) / passes;
    return largest == 1   ? multiply_group<D, Simd::tile_rows[0]>
           : largest == 2 ? multiply_group<D, Simd::tile_rows[1]>
           : largest == 3 ? multiply_group<D, Simd::tile_rows[2]>
                          : multiply_group<D, Simd::tile_rows[most_vectors<D>() - 1]>;
  }
}

// As they lie in a quantised matrix, with their scales.
template <class D>
Rows coded_rows(const RowRun& run) {
  const typename D::Row row = D::row(run.matrix, run.row);
  return {D::address(row, 0), D::row_bytes(run.matrix), row.scales,
          run.matrix.scale_stride * size_of(D::format.scale)};
}

// Codes become bytes, the rows of a tile at a time; while they are multiplied, the next codes are fetched.
template <class D>
void multiply_staged_bytes(const RowRun& run, int64_t k_count, const PanelOf<Tiles<D>>& panel, float* c,
                           int64_t c_stride, void* stage, const RowRun* next) {
  const auto multiply = group_of<Tiles<D>>(panel.vectors);
  char* const bytes = static_cast<char*>(stage);
  const int64_t stride = Tiles<D>::stride(k_count), scales_at = Tiles<D>::scales_at(k_count);
  const Rows staged = {bytes, stride, bytes + scales_at, stride};
  for (int64_t n = 0; n < run.count; n += kByteRows) {
    const int64_t count = smaller(kByteRows, run.count - n);
    for (int64_t i = 0; i < count; ++i)
      D::stage(D::row(run.matrix, run.row + n + i), k_count, bytes + i * stride,
               reinterpret_cast<float*>(bytes + i * stride + scales_at));
    const Rows after = n + count < run.count ? coded_rows<D>({run.matrix, run.row + n + count, 1})
                       : next                ? coded_rows<D>(*next)
                                             : Rows{};
    multiply(staged, count, panel, (k_count + 3) / 4, c + n * c_stride, c_stride, true, after);
  }
}

// c[rows][vectors * lanes] for a run of rows. `next`: rows that will be read after these, or null. `stage`:
// memory for group_rows rows, used by those that cannot be multiplied where they lie.
template <class D>
void multiply_panel(const RowRun& run, int64_t k_count, const PanelOf<Tiles<D>>& panel, float* c,
                    int64_t c_stride, void* stage, const RowRun* next) {
  if constexpr (is_staged_bytes<Tiles<D>>) {
    multiply_staged_bytes<D>(run, k_count, panel, c, c_stride, stage, next);
  } else {
    constexpr int64_t word = is_integer<D> ? 4 : D::group;  // elements of K
    const int64_t words = (k_count + word - 1) / word;
    const auto multiply = group_of<Tiles<D>>(panel.vectors);
    const auto lying = [](const RowRun& r) {
      if constexpr (is_integer<D>)
        return coded_rows<D>(r);
      else
        return Rows{D::address(D::row(r.matrix, r.row), 0), D::row_bytes(r.matrix)};
    };
    if (multiplied_in_place<D>(run.matrix, k_count)) {
      const bool known = next && multiplied_in_place<D>(next->matrix, k_count);
      return multiply(lying(run), run.count, panel, words, c, c_stride, false, known ? lying(*next) : Rows{});
    }
    if constexpr (!is_integer<D>) {
      const int64_t stride = staged_stride<D>(k_count) * int64_t{sizeof(typename D::X)};
      const Rows staged = {static_cast<const char*>(stage), stride};
      for (int64_t n = 0; n < run.count; n += group_rows<D>()) {
        const int64_t count = smaller(group_rows<D>(), run.count - n);
        stage_rows<D>({run.matrix, run.row + n, count}, k_count, static_cast<typename D::X*>(stage));
        multiply(staged, count, panel, words, c + n * c_stride, c_stride, true, Rows{});
      }
    }
  }
}

}  // namespace
}  // namespace moerun::cpu
