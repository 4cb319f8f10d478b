// Attention of many queries: what PromptArgs describes. Included after a Simd and the Dots.
//
// One thread, a block of rows (queries of all heads that share a head of keys and values), keys a block at a
// time, with online softmax (Milakov and Gimelshein 2018; FlashAttention, arXiv 2205.14135):
//   s[key][row] = keys[key] . queries[row]      the tiles of tile_inl.h, keys being weights, rows tokens
//   p[key][row] = exp(scale * s - largest)      rows are lanes, so nothing is summed across lanes
//   o[d][row]  += values[d][key] . p[row]       tiles again; values are staged as columns, p is packed
// Layout: rows are packed once for all keys; s is what the tiles leave, and p is made of it in the packed
// form that they take. Everything but keys and values stays in L2. Bound: arithmetic, of which exponentials
// are about a fifth. Types: products of D's, sums and softmax in fp32, p rounded to D's activations.
#pragma once
#include <cstdint>

#include "cpu/kernel_table.h"
#include "cpu/kernels/activation_inl.h"
#include "cpu/kernels/convert_inl.h"
#include "cpu/kernels/expert_inl.h"
#include "cpu/kernels/pack_inl.h"
#include "cpu/kernels/tile_inl.h"

namespace moerun::cpu {
namespace {

template <class D>
class PromptBlock {
 public:
  explicit PromptBlock(const PromptArgs& a)
      : a_(a), rows_(a.end - a.begin), vectors_(vectors(rows_)), stride_(vectors_ * Simd::lanes) {
    char* at = static_cast<char*>(a.scratch.data);
    const auto take = [&](int64_t bytes) {
      char* begin = at;
      at += (bytes + 63) / 64 * 64;
      return begin;
    };
    const int64_t floats = kPromptRows * int64_t{sizeof(float)};
    queries_ = reinterpret_cast<Vec*>(take(floats * padded_k(a.head_dim)));
    scores_ = reinterpret_cast<float*>(take(floats * kPromptKeys));
    weights_ = reinterpret_cast<Vec*>(take(floats * kPromptKeys));
    sums_ = reinterpret_cast<float*>(take(floats * a.value_dim));
    addends_ = reinterpret_cast<float*>(take(floats * a.value_dim));
    largest_ = reinterpret_cast<float*>(take(floats));
    totals_ = reinterpret_cast<float*>(take(floats));
    factors_ = reinterpret_cast<float*>(take(floats));
    seen_ = reinterpret_cast<float*>(take(floats));
    stage_ = at;
  }

  void run() {
    pack_queries();
    for (int64_t i = 0; i < stride_; ++i) {
      largest_[i] = kPromptUnseen;
      totals_[i] = 0.0f;
    }
    for (int64_t i = 0; i < a_.value_dim * stride_; ++i) sums_[i] = 0.0f;
    const int64_t end = a_.mask ? a_.keys_count : smaller(a_.keys_count, seen_by((a_.end - 1) / a_.group));
    for (int64_t first = 0; first < end; first += kPromptKeys)
      add_keys(first, smaller(kPromptKeys, end - first));
    finish();
  }

 private:
  using X = typename D::X;
  using Vec = typename D::Vec;
  using T = Tiles<D>;
  static constexpr DType kType = D::weight_type;
  static constexpr int64_t kWeightWords = kPromptKeys / D::group;

  // How many keys a token sees without a mask.
  int64_t seen_by(int64_t token) const { return a_.past + token + 1; }

  void pack_queries() {
    const int64_t padded = padded_k(a_.head_dim);
    auto* memory = reinterpret_cast<X*>(scores_);  // one vector's tokens at a time fit; not in use yet
    for (int64_t v = 0; v < vectors_; ++v) {
      const X* x[Simd::lanes];
      const int64_t count = smaller(Simd::lanes, rows_ - v * Simd::lanes);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t row = a_.begin + v * Simd::lanes + i;
        X* to = memory + i * padded;
        const int64_t from = row / a_.group * a_.query_stride + row % a_.group * a_.query_head_stride;
        convert(static_cast<const char*>(a_.queries) + from * size_of(kType), kType, to, D::activation_type,
                a_.head_dim);
        for (int64_t d = a_.head_dim; d < padded; ++d) to[d] = 0;
        x[i] = to;
      }
      pack_tokens<T>(x, count, padded / D::group, queries_ + v * (padded / D::group));
    }
    for (int64_t i = 0; i < stride_; ++i)
      seen_[i] = static_cast<float>(seen_by((a_.begin + smaller(i, rows_ - 1)) / a_.group));
  }

  void add_keys(int64_t first, int64_t count) {
    const int64_t query_words = padded_k(a_.head_dim) / D::group;
    const RowRun keys = {{.data = a_.keys, .row_stride = a_.key_stride}, first, count};
    if (a_.mask && hides_all(first, count)) return;
    multiply_panel<D>(keys, a_.head_dim, {queries_, vectors_, query_words}, scores_, stride_, stage_,
                      nullptr);
    const bool diagonal = !a_.mask && first + count > seen_by(a_.begin / a_.group);
    float scale = a_.scale;
    if (a_.mask && hides_or_adds(first, count)) {
      apply_mask(first, count);
      scale = 1.0f;
    }
    for (int64_t v = 0; v < vectors_; ++v)
      if (diagonal)
        exponentials<true>(v * Simd::lanes, first, count, scale);
      else
        exponentials<false>(v * Simd::lanes, first, count, scale);

    const char* values = static_cast<const char*>(a_.values) + first * a_.value_stride * size_of(kType);
    const RowRun columns = {
        {.data = values, .row_stride = 1, .col_stride = a_.value_stride}, 0, a_.value_dim};
    multiply_panel<D>(columns, count, {weights_, vectors_, kWeightWords}, addends_, stride_, stage_, nullptr);
    for (int64_t d = 0; d < a_.value_dim; ++d)
      for (int64_t i = 0; i < stride_; i += Simd::lanes) {
        float* sum = sums_ + d * stride_ + i;
        Simd::store(sum, Simd::fmadd(Simd::load(sum), Simd::load(factors_ + i),
                                     Simd::load(addends_ + d * stride_ + i)));
      }
  }

  // Scores of `lanes` rows over keys [first, first + count) become weights. On the diagonal, keys behind a
  // row's own are not seen: their scores fall by more than any score has.
  template <bool Diagonal>
  void exponentials(int64_t at, int64_t first, int64_t count, float scale) {
    const Simd::F scales = Simd::set1(scale), before = Simd::load(largest_ + at),
                  seen = Simd::sub(Simd::load(seen_ + at), Simd::set1(static_cast<float>(first + 1)));
    Simd::F most = before;
    for (int64_t n = 0; n < count; ++n) {
      float* score = scores_ + n * stride_ + at;
      Simd::F s = Simd::mul(Simd::load(score), scales);
      if constexpr (Diagonal) {
        const Simd::F left = Simd::sub(seen, Simd::set1(static_cast<float>(n)));  // < 0: not seen
        s = Simd::add(s, Simd::max(Simd::set1(kPromptUnseen),
                                   Simd::mul(Simd::min(left, Simd::zero()), Simd::set1(1e38f))));
      }
      Simd::store(score, s);
      most = Simd::max(s, most);
    }
    Simd::F total = Simd::zero();
    Vec* weights = weights_ + at / Simd::lanes * kWeightWords;
    const auto weight = [&](int64_t n) {
      if (n >= count) return Simd::zero();
      const Simd::F e = exp_of(Simd::sub(Simd::load(scores_ + n * stride_ + at), most));
      total = Simd::add(total, e);
      return e;
    };
    for (int64_t n = 0; n < count; n += D::group) {
      const Simd::F even = weight(n);
      weights[n / D::group] = T::join_rounded(even, D::group > 1 ? weight(n + 1) : even);
    }
    const Simd::F factor = exp_of(Simd::sub(before, most));
    Simd::store(factors_ + at, factor);
    Simd::store(largest_ + at, most);
    Simd::store(totals_ + at, Simd::fmadd(Simd::load(totals_ + at), factor, total));
  }

  const char* mask_at(int64_t token, int64_t key) const {
    const int64_t bytes = a_.mask_adds ? size_of(a_.mask_type) : 1;
    return static_cast<const char*>(a_.mask) + (token * a_.mask_stride + key) * bytes;
  }

  // Calls f(token, its part of the mask) until it returns false; whether it never did.
  template <class F>
  bool every_token(int64_t first, F&& f) const {
    for (int64_t token = a_.begin / a_.group; token <= (a_.end - 1) / a_.group; ++token)
      if (!f(token, mask_at(token, first))) return false;
    return true;
  }
  bool hides_all(int64_t first, int64_t count) const {
    return !a_.mask_adds && every_token(first, [&](int64_t, const char* mask) {
      for (int64_t n = 0; n < count; ++n)
        if (mask[n]) return false;
      return true;
    });
  }
  bool hides_or_adds(int64_t first, int64_t count) const {
    return a_.mask_adds || !every_token(first, [&](int64_t, const char* mask) {
             for (int64_t n = 0; n < count; ++n)
               if (!mask[n]) return false;
             return true;
           });
  }

  // s = scale * s + mask. Finite, so that a row that sees nothing gets some mean, not NaN.
  void apply_mask(int64_t first, int64_t count) {
    every_token(first, [&](int64_t token, const char* mask) {
      float added[kPromptKeys];
      if (a_.mask_adds)
        convert(mask, a_.mask_type, added, DType::f32, count);
      else
        for (int64_t n = 0; n < count; ++n) added[n] = mask[n] ? 0.0f : kPromptUnseen;
      const int64_t begin = token * a_.group - a_.begin, last = begin + a_.group;
      for (int64_t row = begin > 0 ? begin : 0; row < last && row < rows_; ++row)
        for (int64_t n = 0; n < count; ++n) {
          float* score = scores_ + n * stride_ + row;
          const float s = *score * a_.scale + added[n];
          *score = s < kPromptUnseen ? kPromptUnseen : s;
        }
      return true;
    });
    for (int64_t n = 0; n < count; ++n)
      for (int64_t i = rows_; i < stride_; ++i) scores_[n * stride_ + i] = 0.0f;
  }

  // out = sums / totals, from columns to rows.
  void finish() {
    for (int64_t m = 0; m < rows_; m += Simd::lanes) {
      alignas(64) float factor[Simd::lanes];
      for (int64_t i = 0; i < Simd::lanes; ++i) {
        const float sink = a_.sinks ? a_.sinks[(a_.begin + m + i) % a_.group] : kPromptUnseen;
        const float largest = largest_[m + i], most = sink > largest ? sink : largest;
        const float down = expf(largest - most),
                    total = totals_[m + i] * down + (a_.sinks ? expf(sink - most) : 0.0f);
        factor[i] = total > 0 ? down / total : 0.0f * total;  // nothing seen: 0; NaN stays
      }
      const int64_t count = smaller(Simd::lanes, rows_ - m);
      for (int64_t d = 0; d < a_.value_dim; d += Simd::lanes) {
        alignas(64) float block[Simd::lanes * Simd::lanes];
        const int64_t width = smaller(Simd::lanes, a_.value_dim - d);
        load_transposed(sums_ + d * stride_ + m, stride_, width, block);
        for (int64_t i = 0; i < count; ++i) {
          float* row = block + i * Simd::lanes;
          Simd::store(row, Simd::mul(Simd::load(row), Simd::set1(factor[i])));
          const int64_t r = a_.begin + m + i;
          const int64_t to = r / a_.group * a_.out_stride + r % a_.group * a_.out_head_stride + d;
          convert(row, DType::f32, static_cast<char*>(a_.out) + to * size_of(kType), kType, width);
        }
      }
    }
  }

  const PromptArgs& a_;
  const int64_t rows_, vectors_, stride_;        // stride: rows with those that fill the last vector
  Vec* queries_;                                 // packed
  float* scores_;                                // [key][row]
  Vec* weights_;                                 // p, packed
  float *sums_, *addends_;                       // [d][row]
  float *largest_, *totals_, *factors_, *seen_;  // [row]
  void* stage_;
};

template <class D>
void attend_prompt_of(const PromptArgs& a) {
  PromptBlock<D>(a).run();
}

inline void attend_prompt(const PromptArgs& a) {
  switch (a.type) {
    case DType::f32:
      return attend_prompt_of<F32Dot<DType::f32>>(a);
    case DType::f16:
      return attend_prompt_of<F32Dot<DType::f16>>(a);
    case DType::bf16:
      return attend_prompt_of<F32Dot<DType::bf16>>(a);
  }
}

}  // namespace
}  // namespace moerun::cpu
