// Attention of few queries over many keys, weighted sums of rows, and the norm of a row: what AttendArgs,
// SumRowsArgs and NormArgs describe.
// Included after a Simd.
//
// One thread; keys and values are read once from memory, kAttendKeys at a time: scores of all rows (the dot
// products of rows_inl.h, keys being the rows), their exponentials, then sums of values in registers. What
// was summed before is scaled down when a larger score turns up (online softmax, Milakov and Gimelshein
// 2018; FlashAttention). Everything is fp32: keys and values are widened, not rounded.
// Bound: reading keys and values, if few heads share them; with 8 heads and bf16, 2 operations a byte and
// head, that is about where the arithmetic takes as long.
#pragma once
#include <cmath>
#include <cstdint>

#include "cpu/kernel_table.h"
#include "cpu/kernels/activation_inl.h"
#include "cpu/kernels/f32_dot_inl.h"
#include "cpu/kernels/rows_inl.h"

namespace moerun::cpu {
namespace {

constexpr int kAttendRows = 4, kAttendVectors = 4;  // of a block of sums in registers

// The largest of n numbers; a NaN may or may not win, and comes back in the sums.
inline float largest(const float* v, int64_t n) {
  float lanes[Simd::lanes];
  Simd::F most = Simd::set1(v[0]);
  int64_t i = 0;
  for (; i + Simd::lanes <= n; i += Simd::lanes) most = Simd::max(most, Simd::load(v + i));
  Simd::store(lanes, most);
  float result = v[0];
  for (const float lane : lanes) result = lane > result ? lane : result;
  for (; i < n; ++i) result = v[i] > result ? v[i] : result;
  return result;
}

// v[i] = exp(v[i] - most), i < n; returns their sum.
inline float exponentials(float* v, int64_t n, float most) {
  const Simd::F m = Simd::set1(most);
  Simd::F sum = Simd::zero();
  int64_t i = 0;
  for (; i + Simd::lanes <= n; i += Simd::lanes) {
    const Simd::F e = exp_of(Simd::sub(Simd::load(v + i), m));
    Simd::store(v + i, e);
    sum = Simd::add(sum, e);
  }
  float rest = 0.0f;
  if (i < n) {
    const int left = static_cast<int>(n - i);
    float lanes[Simd::lanes];
    Simd::store(lanes, exp_of(Simd::sub(Simd::load(v + i, left), m)));
    for (int j = 0; j < left; ++j) rest += v[i + j] = lanes[j];
  }
  return Simd::sum(sum) + rest;
}

// out[r][d ..] += sum_t weights[r][t] matrix[t][d ..] for R rows and V vectors of columns; the last vector
// has `last` columns.
template <DType T, int R, int V>
inline void add_rows(const SumRowsArgs& a, int64_t row, int64_t column, int last) {
  const float* p = a.weights + row * a.weight_stride;
  float* out = a.out + row * a.out_stride + column;
  const bool whole = last == Simd::lanes;
  Simd::F sum[R][V];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const float* from = out + r * a.out_stride + v * Simd::lanes;
      sum[r][v] = v + 1 < V || whole ? Simd::load(from) : Simd::load(from, last);
    }
  const char* values = static_cast<const char*>(a.matrix) + column * size_of(T);
  for (int64_t t = 0; t < a.count; ++t, values += a.matrix_stride * size_of(T)) {
    Simd::F value[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const char* from = values + v * Simd::lanes * size_of(T);
      value[v] = v + 1 < V || whole ? Simd::load_as<T>(from) : Simd::load_as<T>(from, last);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Simd::F weight = Simd::set1(p[r * a.weight_stride + t]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] = Simd::fmadd(weight, value[v], sum[r][v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      float* to = out + r * a.out_stride + v * Simd::lanes;
      if (v + 1 < V || whole)
        Simd::store(to, sum[r][v]);
      else
        Simd::store(to, sum[r][v], last);
    }
}

template <DType T, int R>
inline void add_rows(const SumRowsArgs& a, int64_t row) {
  constexpr int64_t kBlock = kAttendVectors * Simd::lanes;
  int64_t d = 0;
  for (; d + kBlock <= a.width; d += kBlock) add_rows<T, R, kAttendVectors>(a, row, d, Simd::lanes);
  for (; d < a.width; d += Simd::lanes)
    add_rows<T, R, 1>(a, row, d, static_cast<int>(smaller(Simd::lanes, a.width - d)));
}

template <DType T>
inline void add_rows(const SumRowsArgs& a) {
  int64_t r = 0;
  for (; r + kAttendRows <= a.rows; r += kAttendRows) add_rows<T, kAttendRows>(a, r);
  for (; r < a.rows; ++r) add_rows<T, 1>(a, r);
}

template <DType T>
void sum_rows_of(const SumRowsArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r)
    for (int64_t d = 0; d < a.width; ++d) a.out[r * a.out_stride + d] = 0.0f;
  add_rows<T>(a);
}

inline void sum_rows(const SumRowsArgs& a) {
  switch (a.type) {
    case DType::f32:
      return sum_rows_of<DType::f32>(a);
    case DType::f16:
      return sum_rows_of<DType::f16>(a);
    case DType::bf16:
      return sum_rows_of<DType::bf16>(a);
  }
}

inline void scale_row(float* v, int64_t n, float factor) {
  const Simd::F f = Simd::set1(factor);
  int64_t i = 0;
  for (; i + Simd::lanes <= n; i += Simd::lanes) Simd::store(v + i, Simd::mul(f, Simd::load(v + i)));
  for (; i < n; ++i) v[i] *= factor;
}

// scores of row r over keys [first, first + count) become exponentials; sums so far are brought to the same
// maximum.
inline void exponentials_of_row(const AttendArgs& a, int64_t r, int64_t first, int64_t count) {
  float* s = a.scratch + r * kAttendKeys;
  if (a.bias) {
    const float* bias = a.bias + r / a.rows_per_bias * a.bias_stride + first;
    for (int64_t t = 0; t < count; ++t) s[t] += bias[t];
  }
  const float here = largest(s, count), before = a.most[r];
  if (first == 0 || here > before) {
    if (first > 0) {
      const float down = expf(before - here);
      a.total[r] *= down;
      scale_row(a.out + r * a.head_dim, a.head_dim, down);
    }
    a.most[r] = here;
  }
  a.total[r] += exponentials(s, count, a.most[r]);
}

// scores[r][t] = queries[row + r] . (keys[first + t], more_keys[first + t]) for up to kRowTokens rows
template <DType T>
inline void score_rows(const AttendArgs& a, int64_t row, int64_t rows, int64_t first, int64_t count) {
  using D = F32Dot<T>;
  const float* x[kRowTokens];
  for (int64_t i = 0; i < rows; ++i) x[i] = a.queries + (row + i) * a.query_stride;
  float* scores = a.scratch + row * kAttendKeys;
  const MatrixView keys{.data = a.keys, .row_stride = a.key_stride};
  dot_rows<D>(keys, first, count, a.head_dim, x, rows, scores, kAttendKeys, nullptr);
  if (!a.more_keys) return;
  for (int64_t i = 0; i < rows; ++i) x[i] += (a.head_dim + kMostLanes - 1) / kMostLanes * kMostLanes;
  float* rest = a.scratch + a.rows * kAttendKeys;
  const MatrixView more{.data = a.more_keys, .row_stride = a.more_stride};
  dot_rows<D>(more, first, count, a.more_dim, x, rows, rest, kAttendKeys, nullptr);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t t = 0; t < count; ++t) scores[i * kAttendKeys + t] += rest[i * kAttendKeys + t];
}

template <DType T>
void attend_over(const AttendArgs& a) {
  static_assert(kRowTokens * kAttendKeys <= kAttendRest);
  for (int64_t r = 0; r < a.rows; ++r) a.total[r] = 0.0f;
  for (int64_t i = 0; i < a.rows * a.head_dim; ++i) a.out[i] = 0.0f;
  for (int64_t first = 0; first < a.count; first += kAttendKeys) {
    const int64_t count = smaller(kAttendKeys, a.count - first);
    for (int64_t r = 0; r < a.rows; r += kRowTokens)
      score_rows<T>(a, r, smaller(kRowTokens, a.rows - r), first, count);
    for (int64_t r = 0; r < a.rows; ++r) exponentials_of_row(a, r, first, count);
    add_rows<T>({.weights = a.scratch,
                 .weight_stride = kAttendKeys,
                 .rows = a.rows,
                 .matrix = static_cast<const char*>(a.values) + first * a.value_stride * size_of(T),
                 .type = T,
                 .matrix_stride = a.value_stride,
                 .count = count,
                 .width = a.head_dim,
                 .out = a.out,
                 .out_stride = a.head_dim});
  }
}

inline void attend(const AttendArgs& a) {
  switch (a.type) {
    case DType::f32:
      return attend_over<DType::f32>(a);
    case DType::f16:
      return attend_over<DType::f16>(a);
    case DType::bf16:
      return attend_over<DType::bf16>(a);
  }
}

template <DType X>
inline float sum_of_squares(const void* x, int64_t width) {
  const char* from = static_cast<const char*>(x);
  Simd::F sum[2] = {Simd::zero(), Simd::zero()};
  int64_t i = 0;
  for (; i + 2 * Simd::lanes <= width; i += 2 * Simd::lanes)
    for (int u = 0; u < 2; ++u) {
      const Simd::F v = Simd::load_as<X>(from + (i + u * Simd::lanes) * size_of(X));
      sum[u] = Simd::fmadd(v, v, sum[u]);
    }
  for (; i < width; i += Simd::lanes) {
    const Simd::F v =
        Simd::load_as<X>(from + i * size_of(X), static_cast<int>(smaller(Simd::lanes, width - i)));
    sum[0] = Simd::fmadd(v, v, sum[0]);
  }
  return Simd::sum(Simd::add(sum[0], sum[1]));
}

template <DType X, DType Y>
void rms_norm_of(const NormArgs& a) {
  const Simd::F scale =
      Simd::set1(1.0f / sqrtf(sum_of_squares<X>(a.x, a.width) / static_cast<float>(a.width) + a.epsilon));
  const char* from = static_cast<const char*>(a.x);
  char* to = static_cast<char*>(a.y);
  int64_t i = 0;
  for (; i + Simd::lanes <= a.width; i += Simd::lanes) {
    const Simd::F v = Simd::mul(Simd::load_as<X>(from + i * size_of(X)), scale);
    Simd::store_as<Y>(to + i * size_of(Y), Simd::mul(v, Simd::load(a.weight + i)));
  }
  if (i < a.width) {
    const int left = static_cast<int>(a.width - i);
    const Simd::F v = Simd::mul(Simd::load_as<X>(from + i * size_of(X), left), scale);
    Simd::store_as<Y>(to + i * size_of(Y), Simd::mul(v, Simd::load(a.weight + i, left)), left);
  }
}

template <DType X>
inline void rms_norm_from(const NormArgs& a) {
  switch (a.y_type) {
    case DType::f32:
      return rms_norm_of<X, DType::f32>(a);
    case DType::f16:
      return rms_norm_of<X, DType::f16>(a);
    case DType::bf16:
      return rms_norm_of<X, DType::bf16>(a);
  }
}

inline void rms_norm(const NormArgs& a) {
  switch (a.x_type) {
    case DType::f32:
      return rms_norm_from<DType::f32>(a);
    case DType::f16:
      return rms_norm_from<DType::f16>(a);
    case DType::bf16:
      return rms_norm_from<DType::bf16>(a);
  }
}

}  // namespace
}  // namespace moerun::cpu
