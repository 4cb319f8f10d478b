// Weights to codes and scales, for every quantised format. One thread, one row (fp8: one block of rows) a
// call.
//
//   int8        scale = max|w| / 127, code = round(w / scale)
//   int4        scale by least squared error among kCandidates (below), code = clamp(round(w / scale), -8, 7)
//   + 8 int4z       scale and zero point likewise, code = clamp(round(w / scale) + zero, 0, 15) fp8 scale =
//   max|w| / 448 of the block, code = e4m3(w / scale) mxfp4       scale = the better of two powers of two,
//   code = e2m1(w / scale)
// Rounding is to nearest even. A scale is rounded to its own type before codes are chosen, so that it adds no
// error.
//
// Scales of groups are fp16: quantised checkpoints carry fp16 or bf16 scales, and of a bf16 one within fp16's
// range every bit is kept, but not the other way round. Scales below 2^-14 are subnormal and are rounded away
// from zero, so that no weight is clipped by it; the absolute error is then at most half of 2^-24 a code. A
// scale above 65504 is refused (too_large).
//
// Vectors in GCC's own notation, and no fused multiply-adds (-ffp-contract=off): every
// instruction set gives the same bytes, which the cache on disk relies on.
#pragma once
#include <cstdint>
#include <cstring>

#include "cpu/kernels/number_formats_inl.h"
#include "cpu/quantise.h"

namespace moerun::cpu {
namespace {

// kLanes, the floats of a vector, is defined by whoever includes this.
using V = float __attribute__((vector_size(4 * kLanes)));
using I = int32_t __attribute__((vector_size(4 * kLanes)));
using Pairs = uint64_t __attribute__((vector_size(4 * kLanes)));

inline V splat(float v) {
  return v - V{};
}
inline V load(const float* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline V least(V a, V b) {
  return a < b ? a : b;
}
inline V most(V a, V b) {
  return a > b ? a : b;
}
inline V clamp(V v, float low, float high) {
  return most(least(v, splat(high)), splat(low));
}
inline V magnitude(V v) {
  return reinterpret_cast<V>(reinterpret_cast<I>(v) & 0x7fffffff);
}
// To nearest even, for |v| < 2^22: the sum has no room for a fraction.
inline V round(V v) {
  return (v + 12582912.0f) - 12582912.0f;
}
inline float highest(V v) {
  float m = v[0];
  for (int i = 1; i < kLanes; ++i) m = v[i] > m ? v[i] : m;
  return m;
}

inline bool all_finite(const float* w, int64_t n) {
  I bad = {};
  for (int64_t i = 0; i < n; i += kLanes) bad |= (reinterpret_cast<I>(magnitude(load(w + i))) >= 0x7f800000);
  int any = 0;
  for (int i = 0; i < kLanes; ++i) any |= bad[i];
  return any == 0;
}

inline float max_magnitude(const float* w, int64_t n) {
  V m = {};
  for (int64_t i = 0; i < n; i += kLanes) m = most(m, magnitude(load(w + i)));
  return highest(m);
}

// The fp16 number that a scale is stored as: the nearest, or the next one away from zero where that is
// subnormal.
inline uint16_t stored_scale(float scale) {
  uint16_t h = to_f16(scale);
  const float back = from_f16(h);
  if (std::fabs(scale) < 0x1p-14f && std::fabs(back) < std::fabs(scale)) ++h;
  return h;
}
constexpr float kLargestScale = 65504.0f;

inline void store_bytes(I v, uint8_t* to) {
  for (int i = 0; i < kLanes; ++i) to[i] = static_cast<uint8_t>(v[i]);
}

// Eight codes of 0 .. 15 into four bytes, the even ones in the low halves.
inline void store_nibbles(I v, uint8_t* to) {
  const Pairs p = reinterpret_cast<Pairs>(v);
  const Pairs bytes = p | p >> 28;
  for (int i = 0; i < kLanes / 2; ++i) to[i] = static_cast<uint8_t>(bytes[i]);
}

// Weights below this become 0: the inverse of their scale might not be finite.
constexpr float kNothing = 0x1p-120f;
inline float inverse(float scale) {
  return std::fabs(scale) >= kNothing ? 1.0f / scale : 0.0f;
}

inline void int8_codes(const float* w, int64_t n, float scale, uint8_t* codes) {
  const V inv = splat(inverse(scale));
  for (int64_t i = 0; i < n; i += kLanes)
    store_bytes(__builtin_convertvector(clamp(round(load(w + i) * inv), -127, 127), I), codes + i);
}

// Four-bit groups are fitted eight at a time, a group in each lane: w[j] holds the j-th weight of each.
template <int G>
inline void gather_groups(const float* weights, int64_t groups, V (&w)[G]) {
  float lanes[G][kLanes] = {};
  for (int g = 0; g < groups; ++g)
    for (int j = 0; j < G; ++j) lanes[j][g] = weights[g * G + j];
  std::memcpy(w, lanes, sizeof w);
}

// A candidate's codes q give the best scale for them, sum(w q) / sum(q q), and with that the squared error
// sum(w w) - sum(w q)^2 / sum(q q). So the candidate with the largest sum(w q)^2 / sum(q q) wins.
struct Fit {
  V scale = {}, gain = {};
  template <int G>
  void offer(const V (&w)[G], V inverse_scale, V lowest_code, V highest_code) {
    V wq = {}, qq = {};
    for (int j = 0; j < G; ++j) {
      const V q = most(least(round(w[j] * inverse_scale), highest_code), lowest_code);
      wq += w[j] * q;
      qq += q * q;
    }
    const I better = wq * wq > gain * qq;
    gain = better ? wq * wq / qq : gain;
    scale = better ? wq / qq : scale;
  }
};

struct Range {
  V low = {}, high = {};  // with 0 between them
};

template <int G>
inline Range range_of(const V (&w)[G]) {
  Range r;
  for (int j = 0; j < G; ++j) {
    r.low = least(r.low, w[j]);
    r.high = most(r.high, w[j]);
  }
  return r;
}

inline V inverse(V v) {
  return magnitude(v) >= splat(kNothing) ? 1.0f / v : splat(0.0f);
}

// The largest weight in magnitude becomes -c before clamping: c = 8 is llama.cpp's Q4_0, its make_qx_quants
// tries the range around. Negative: it lies at the positive end, which is better where both ends are alike.
constexpr float kCandidates[] = {-8.0f, -7.0f, 7.25f, 7.5f, 7.75f, 8.0f, 8.25f, 8.5f, 8.75f, 9.25f};

template <int G>
inline V symmetric_scales(const V (&w)[G]) {
  const Range r = range_of(w);
  const V inv = inverse(-r.low > r.high ? r.low : r.high);
  Fit fit;
  for (const float c : kCandidates) fit.offer(w, inv * -c, splat(-8), splat(7));
  return fit.scale;
}

// A range that is a little too small costs the extremes and gains the many. Heuristic: five steps of 4 %.
template <int G>
inline V zero_point_scales(const V (&w)[G], V* zeros) {
  const Range r = range_of(w);
  const V inv = inverse(r.high - r.low) * 15.0f;
  *zeros = round(-r.low * inv);
  Fit fit;
  for (int step = 0; step <= 5; ++step) fit.offer(w, inv / (1.0f - 0.04f * step), -*zeros, 15.0f - *zeros);
  return fit.scale;
}

template <int G>
QuantiseResult int4_row(const QuantiseArgs& a) {
  auto* scales = static_cast<uint16_t*>(a.scales);
  for (int64_t first = 0; first < a.columns / G; first += kLanes) {
    const int64_t left = a.columns / G - first, groups = left < kLanes ? left : kLanes;
    V w[G], zeros = splat(8);
    gather_groups(a.weights + first * G, groups, w);
    const V fitted = a.zeros ? zero_point_scales(w, &zeros) : symmetric_scales(w);
    for (int64_t g = 0; g < groups; ++g) {
      if (std::fabs(fitted[g]) > kLargestScale) return QuantiseResult::too_large;
      const uint16_t scale = scales[first + g] = stored_scale(fitted[g]);
      if (a.zeros) a.zeros[first + g] = static_cast<uint8_t>(zeros[g]);
      const V inv = splat(inverse(from_f16(scale)));
      for (int64_t i = (first + g) * G; i < (first + g + 1) * G; i += kLanes)
        store_nibbles(__builtin_convertvector(clamp(round(load(a.weights + i) * inv) + zeros[g], 0, 15), I),
                      a.codes + i / 2);
    }
  }
  return QuantiseResult::ok;
}

inline QuantiseResult int8_rows(const QuantiseArgs& a) {
  const float scale = max_magnitude(a.weights, a.columns) / 127.0f;
  *static_cast<float*>(a.scales) = scale;
  int8_codes(a.weights, a.columns, scale, a.codes);
  return QuantiseResult::ok;
}

inline QuantiseResult int8_groups(const QuantiseArgs& a, int64_t group) {
  auto* scales = static_cast<uint16_t*>(a.scales);
  for (int64_t begin = 0; begin < a.columns; begin += group) {
    const int64_t n = a.columns - begin < group ? a.columns - begin : group;
    const float scale = max_magnitude(a.weights + begin, n) / 127.0f;
    if (scale > kLargestScale) return QuantiseResult::too_large;
    scales[begin / group] = stored_scale(scale);
    int8_codes(a.weights + begin, n, from_f16(scales[begin / group]), a.codes + begin);
  }
  return QuantiseResult::ok;
}

// To nearest even; |v| above 448 becomes 448.
inline I e4m3_codes(V v) {
  const I sign = (reinterpret_cast<I>(v) >> 24) & 0x80;
  const V m = least(magnitude(v), splat(448.0f));
  const I bits = reinterpret_cast<I>(m);
  // From 2^-6 on: round the fraction to 3 bits; a carry moves into the exponent by itself.
  const I normal = ((bits + 0x7ffff + ((bits >> 20) & 1)) >> 20) - ((127 - 7) << 3);
  // Below: multiples of 2^-9, which is the last bit of 2^14.
  const I subnormal = reinterpret_cast<I>(m + 16384.0f) - __builtin_bit_cast(int32_t, 16384.0f);
  return sign | (m < splat(0x1p-6f) ? subnormal : normal);
}

inline QuantiseResult fp8_block(const QuantiseArgs& a, int64_t group) {
  auto* scales = static_cast<float*>(a.scales);
  for (int64_t begin = 0; begin < a.columns; begin += group) {
    const int64_t n = a.columns - begin < group ? a.columns - begin : group;
    float largest = 0.0f;
    for (int64_t r = 0; r < a.rows; ++r) {
      const float m = max_magnitude(a.weights + r * a.columns + begin, n);
      largest = m > largest ? m : largest;
    }
    scales[begin / group] = largest / 448.0f;
    const V inv = splat(inverse(scales[begin / group]));
    for (int64_t r = 0; r < a.rows; ++r)
      for (int64_t i = begin; i < begin + n; i += kLanes)
        store_bytes(e4m3_codes(load(a.weights + r * a.columns + i) * inv), a.codes + r * a.columns + i);
  }
  return QuantiseResult::ok;
}

// To nearest, a tie to the even code; magnitudes above 6 become 6.
inline I e2m1_magnitudes(V m) {
  const auto count = [](I mask) { return -mask; };  // true is -1
  return count(m > splat(0.25f)) + count(m >= splat(0.75f)) + count(m > splat(1.25f)) +
         count(m >= splat(1.75f)) + count(m > splat(2.5f)) + count(m >= splat(3.5f)) + count(m > splat(5.0f));
}

// What a code means, from its magnitude: 0, 0.5, 1, 1.5, 2, 3, 4, 6.
inline V e2m1_values(I code) {
  const V c = __builtin_convertvector(code, V);
  return code <= 4 ? c * 0.5f : code == 7 ? splat(6.0f) : c - 2.0f;
}

// The OCP rule takes the exponent of the largest weight less 2, so that what lies between 6 and 8 times the
// scale is clipped; the next power of two clips nothing, but is coarser. Whichever has the smaller squared
// error is taken.
template <int G>
inline I mxfp4_scales(const V (&w)[G]) {
  const Range r = range_of(w);
  const I exponent = reinterpret_cast<I>(most(-r.low, r.high)) >> 23;
  const I first = exponent > 2 ? exponent - 2 : I{};
  V errors[2];
  for (int e = 0; e <= 1; ++e) {
    const I biased = first + e;
    const V unit = reinterpret_cast<V>(biased == 0 ? I{} + (1 << 22) : biased << 23), inv = 1.0f / unit;
    errors[e] = V{};
    for (int j = 0; j < G; ++j) {
      const V m = magnitude(w[j]) * inv;
      const V d = m - e2m1_values(e2m1_magnitudes(m));
      errors[e] += d * d;
    }
  }
  // in squares of twice the first unit
  return errors[1] < errors[0] * 0.25f ? first + 1 : first;
}

template <int G>
QuantiseResult mxfp4_row(const QuantiseArgs& a) {
  auto* scales = static_cast<uint8_t*>(a.scales);
  for (int64_t first = 0; first < a.columns / G; first += kLanes) {
    const int64_t left = a.columns / G - first, groups = left < kLanes ? left : kLanes;
    V w[G];
    gather_groups(a.weights + first * G, groups, w);
    const I chosen = mxfp4_scales(w);
    for (int64_t g = 0; g < groups; ++g) {
      scales[first + g] = static_cast<uint8_t>(chosen[g]);
      const V inv = splat(1.0f / from_e8m0(scales[first + g]));
      for (int64_t i = (first + g) * G; i < (first + g + 1) * G; i += kLanes) {
        const V v = load(a.weights + i);
        const I sign = (reinterpret_cast<I>(v) >> 28) & 8;
        store_nibbles(e2m1_magnitudes(magnitude(v) * inv) | sign, a.codes + i / 2);
      }
    }
  }
  return QuantiseResult::ok;
}

inline QuantiseResult quantise(const QuantiseArgs& a) {
  if (!all_finite(a.weights, a.rows * a.columns)) return QuantiseResult::not_finite;
  const FormatInfo& format = info(a.format);
  if (a.format == WeightFormat::fp8_b128) return fp8_block(a, format.group);
  if (a.format == WeightFormat::mxfp4) return mxfp4_row<32>(a);
  if (format.bits == 8) return format.group ? int8_groups(a, format.group) : int8_rows(a);
  return format.group == 32 ? int4_row<32>(a) : format.group == 64 ? int4_row<64>(a) : int4_row<128>(a);
}

}  // namespace
}  // namespace moerun::cpu
