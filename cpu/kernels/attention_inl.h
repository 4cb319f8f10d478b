// Attention of few queries over many keys, and the norm of a row: what AttendArgs and NormArgs describe.
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

// out[r][d ..] += sum_t p[r][t] values[t][d ..] for R rows and V vectors of columns; the last vector has
// `last` columns.
template <DType T, int R, int V>
inline void add_values(const AttendArgs& a, int64_t row, int64_t column, int64_t first, int64_t count,
                       int last) {
  const float* p = a.scratch + row * kAttendKeys;
  float* out = a.out + row * a.head_dim + column;
  const bool whole = last == Simd::lanes;
  Simd::F sum[R][V];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const float* from = out + r * a.head_dim + v * Simd::lanes;
      sum[r][v] = v + 1 < V || whole ? Simd::load(from) : Simd::load(from, last);
    }
  const char* values = static_cast<const char*>(a.values) + (first * a.value_stride + column) * size_of(T);
  for (int64_t t = 0; t < count; ++t, values += a.value_stride * size_of(T)) {
    Simd::F value[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const char* from = values + v * Simd::lanes * size_of(T);
      value[v] = v + 1 < V || whole ? Simd::load_as<T>(from) : Simd::load_as<T>(from, last);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Simd::F weight = Simd::set1(p[r * kAttendKeys + t]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] = Simd::fmadd(weight, value[v], sum[r][v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      float* to = out + r * a.head_dim + v * Simd::lanes;
      if (v + 1 < V || whole)
        Simd::store(to, sum[r][v]);
      else
        Simd::store(to, sum[r][v], last);
    }
}

template <DType T, int R>
inline void add_values(const AttendArgs& a, int64_t row, int64_t first, int64_t count) {
  constexpr int64_t kBlock = kAttendVectors * Simd::lanes;
  int64_t d = 0;
  for (; d + kBlock <= a.head_dim; d += kBlock)
    add_values<T, R, kAttendVectors>(a, row, d, first, count, Simd::lanes);
  for (; d < a.head_dim; d += Simd::lanes) {
    const int64_t left = smaller(Simd::lanes, a.head_dim - d);
    add_values<T, R, 1>(a, row, d, first, count, static_cast<int>(left));
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

template <DType T>
void attend_over(const AttendArgs& a) {
  using D = F32Dot<T>;
  for (int64_t r = 0; r < a.rows; ++r) a.total[r] = 0.0f;
  for (int64_t i = 0; i < a.rows * a.head_dim; ++i) a.out[i] = 0.0f;
  const MatrixView keys{.data = a.keys, .row_stride = a.key_stride};
  for (int64_t first = 0; first < a.count; first += kAttendKeys) {
    const int64_t count = smaller(kAttendKeys, a.count - first);
    for (int64_t r = 0; r < a.rows; r += kRowTokens) {
      const int64_t rows = smaller(kRowTokens, a.rows - r);
      const float* x[kRowTokens];
      for (int64_t i = 0; i < rows; ++i) x[i] = a.queries + (r + i) * a.query_stride;
      dot_rows<D>(keys, first, count, a.head_dim, x, rows, a.scratch + r * kAttendKeys, kAttendKeys, nullptr);
    }
    for (int64_t r = 0; r < a.rows; ++r) exponentials_of_row(a, r, first, count);
    int64_t r = 0;
    for (; r + kAttendRows <= a.rows; r += kAttendRows) add_values<T, kAttendRows>(a, r, first, count);
    for (; r < a.rows; ++r) add_values<T, 1>(a, r, first, count);
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
