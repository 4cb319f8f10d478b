// Staging: weight rows that cannot be multiplied where they lie (quantised, of another float type,
// column-major, or with an odd end) become rows of the activations' type in the thread's scratch. Included
// after a Simd and a Dot.
//
// Layout: [rows][staged_stride] X, contiguous in K, zeros up to the next whole step. A staged row serves all
// tokens of an expert, so it costs a few per cent of the multiplication at 64 tokens.
#pragma once
#include <cstdint>

#include "cpu/kernels/f32_dot_inl.h"
#include "cpu/kernels/rows_inl.h"
#include "src/types.h"

namespace moerun::cpu {
namespace {

// The rows [row, row + count) of a matrix.
struct RowRun {
  MatrixView matrix;
  int64_t row = 0;
  int64_t count = 0;
};

// Elements of K that tiles take at a time.
template <class D>
constexpr int64_t tile_k() {
  if constexpr (requires { D::tile_k; })
    return D::tile_k;
  else
    return D::group;
}

template <class D>
inline bool multiplied_in_place(const MatrixView& m, int64_t k_count) {
  if constexpr (D::in_place)
    // quantised rows are filled up
    return m.col_stride == 1 && (D::scaled || k_count % tile_k<D>() == 0);
  else
    return false;
}

// X from row to row: whole steps, and a cache line more so that rows do not share sets of L1.
template <class D>
inline int64_t staged_stride(int64_t k_count) {
  return (k_count + 63) / 64 * 64 + 64 / int64_t{sizeof(typename D::X)};
}

template <class D>
inline void stage_contiguous(const RowRun& run, int64_t k_count, typename D::X* to) {
  const int64_t stride = staged_stride<D>(k_count);
  for (int64_t n = 0; n < run.count; ++n) {
    const typename D::Row row = D::row(run.matrix, run.row + n);
    typename D::X* out = to + n * stride;
    int64_t k = 0;
    for (; k + D::step <= k_count; k += D::step) {
      prefetch_ahead(D::address(row, k), D::step_bytes);
      D::store(out + k, D::weights(row, k));
    }
    if (k < k_count) D::store(out + k, D::weights(row, k, static_cast<int>(k_count - k)));
  }
}

// Column-major rows side by side (row_stride 1) or alternating with another matrix's (row_stride 2, as
// gpt-oss has it): `lanes` rows of column k.
template <class D>
inline Simd::F load_column(const RowRun& run, int64_t k) {
  constexpr DType W = D::weight_type;
  const char* from = element<W>(run.matrix, run.row, k);
  if (run.matrix.row_stride == 1)
    return run.count == Simd::lanes ? Simd::load_as<W>(from)
                                    : Simd::load_as<W>(from, static_cast<int>(run.count));
  if (run.matrix.row_stride == 2 && run.count == Simd::lanes) return Simd::load_alternate<W>(from);
  float lane[Simd::lanes] = {};
  for (int64_t i = 0; i < run.count; ++i) {
    float one[Simd::lanes];
    Simd::store(one, Simd::load_as<W>(element<W>(run.matrix, run.row + i, k), 1));
    lane[i] = one[0];
  }
  return Simd::load(lane);
}

// Blocks of lanes rows x lanes words, transposed in registers.
template <class D>
inline void stage_columns(const RowRun& run, int64_t k_count, typename D::X* to) {
  const int64_t stride = staged_stride<D>(k_count);
  for (int64_t k = 0; k < k_count; k += Simd::lanes * D::group)
    for (int64_t n = 0; n < run.count; n += Simd::lanes) {
      const int64_t count = smaller(Simd::lanes, run.count - n);
      const RowRun block = {run.matrix, run.row + n, count};
      typename D::Vec word[Simd::lanes];
      for (int i = 0; i < Simd::lanes; ++i) {
        const int64_t at = k + i * D::group;
        const Simd::F first = at < k_count ? load_column<D>(block, at) : Simd::zero();
        const Simd::F second =
            D::group > 1 && at + 1 < k_count ? load_column<D>(block, at + 1) : Simd::zero();
        word[i] = D::join(first, second);
      }
      Simd::transpose(word);
      for (int64_t i = 0; i < count; ++i) D::store(to + (n + i) * stride + k, word[i]);
    }
}

template <class D>
inline void stage_rows(const RowRun& run, int64_t k_count, typename D::X* to) {
  if constexpr (!D::scaled)
    if (run.matrix.col_stride != 1) return stage_columns<D>(run, k_count, to);
  stage_contiguous<D>(run, k_count, to);
}

}  // namespace
}  // namespace moerun::cpu
