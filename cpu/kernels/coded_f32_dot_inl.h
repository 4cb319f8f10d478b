// How quantised weights meet fp32 activations: codes become floats in registers, exactly; the products of a
// block are summed, then scaled. Included after a Simd and its Codes (cpu/<isa>/codes.h). A Dot as described
// in f32_dot_inl.h.
//
// Row by row, 8-bit codes are taken in order of k. Of 4-bit codes a block is a vector of words, each of 8
// codes that share a scale; shifting it by 4 j leaves code j of every word, so activations are arranged in
// this order: 8 x lanes of them, transposed. For tiles, weights are staged in order of k.
//
// Bytes: the codes once, plus scales. Operations per vector of weights: what Codes says, one load of x and
// one multiply-add per token; a block adds about 4 for its scale. Bound at one token: memory for 8-bit codes,
// arithmetic for 4-bit ones.
#pragma once
#include <cstdint>
#include <utility>

#include "cpu/kernels/coded_row_inl.h"
#include "cpu/kernels/f32_dot_inl.h"
#include "src/types.h"

namespace moerun::cpu {
namespace {

template <WeightFormat W>
struct CodedF32Dot {
  static constexpr const FormatInfo& format = info(W);
  using X = float;
  using Tiles = F32Dot<DType::f32>;
  using RowX = X;
  using Vec = Simd::F;
  using Acc = Simd::F;
  using Row = CodedRow;
  static constexpr bool scaled = true;
  static constexpr bool arranged = format.bits == 4;
  static constexpr DType activation_type = DType::f32;
  static constexpr int group = 1;
  static constexpr bool in_place = false;

  // At most four vectors: more would not stay in registers beside the sums of four tokens.
  static constexpr int step = format.group == 32 ? 32 : 4 * Simd::lanes;
  static constexpr int64_t step_bytes = step * format.bits / 8;
  struct Step {
    Simd::F vec[step / Simd::lanes];
  };
  static constexpr int kWordCodes = 8;
  static constexpr int block = arranged ? kWordCodes * Simd::lanes : step;
  static constexpr int64_t block_bytes = block * format.bits / 8;

  static int64_t row_bytes(const MatrixView& m) { return coded_row_bytes<W>(m); }
  static Row row(const MatrixView& m, int64_t n) { return coded_row<W>(m, n); }
  static const char* address(const Row& r, int64_t k) { return r.codes + k * format.bits / 8; }
  static Vec activations(const X* x) { return Simd::load(x); }
  static Vec broadcast(const void* word) { return F32Dot<DType::f32>::broadcast(word); }
  static Acc multiply_add(Vec a, Vec b, Acc c) { return Simd::fmadd(a, b, c); }
  static Vec join_rounded(Simd::F k0, Simd::F) { return k0; }
  static void store(X* to, Vec v) { Simd::store(to, v); }
  static void store(X* to, const Step& s) {
    for (int j = 0; j < step / Simd::lanes; ++j) Simd::store(to + j * Simd::lanes, s.vec[j]);
  }

  // [block][code of a word][word] of activations
  static int64_t arranged_size(int64_t k_count) { return (k_count + block - 1) / block * block; }
  static void arrange(const X* x, int64_t k_count, RowX* to) {
    for (int64_t k = 0; k < k_count; k += block, to += block) {
      Simd::F words[Simd::lanes];
      for (int w = 0; w < Simd::lanes; ++w) {
        const int64_t at = k + w * kWordCodes;  // there are zeros up to a multiple of 64
        words[w] = at < k_count ? Simd::load(x + at, kWordCodes) : Simd::zero();
      }
      Simd::transpose(words);
      for (int j = 0; j < kWordCodes; ++j) Simd::store(to + j * Simd::lanes, words[j]);
    }
  }

  // sum[m] += codes * scales * x[m] over `block` elements of K
  template <int M>
  static void add_block(const Row& r, int64_t k, const RowX* const* x, Acc (&sum)[M]) {
    Simd::F products[M];
    for (auto& p : products) p = Simd::zero();
    const auto add = [&](int j, Simd::F codes) {
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m)
        products[m] = Simd::fmadd(codes, Simd::load(x[m] + k + j * Simd::lanes), products[m]);
    };
    Simd::F s;
    if constexpr (arranged) {
      const Codes::Words words(address(r, k), meaning<kBlockGroups>(r, k));
      [&]<int... J>(std::integer_sequence<int, J...>) {
        (add(J, words.template vector<J>()), ...);
      }(std::make_integer_sequence<int, kWordCodes>());
      s = Codes::scales<format.scale, kBlockGroups>(r.scales + k / format.group * size_of(format.scale));
    } else {
      const Step c = codes(r, k);
#pragma GCC unroll 4
      for (int j = 0; j < step / Simd::lanes; ++j) add(j, c.vec[j]);
      s = scale(r, k);
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) sum[m] = Simd::fmadd(products[m], s, sum[m]);
  }

  // What add_block leaves out: a factor of the whole row.
  static float row_scale(const Row&) { return kUnit; }

  // A step of weights in order of k, scaled: what is staged for tiles.
  static Step weights(const Row& r, int64_t k) {
    Step b = codes(r, k);
    const Simd::F s = Simd::mul(scale(r, k), Simd::set1(kUnit));
    for (Simd::F& v : b.vec) v = Simd::mul(v, s);
    return b;
  }
  static Step weights(const Row& r, int64_t k, int) {
    return weights(r, k);
  }  // rows are filled up with zeros

 private:
  static constexpr float kUnit = W == WeightFormat::fp8_b128 ? 256.0f : 1.0f;  // of codes()

  // Groups of a block of words.
  static constexpr int kBlockGroups = format.group && format.group < block ? block / format.group : 1;

  // Of four-bit codes that belong to G groups from k on.
  template <int G>
  static auto meaning(const Row& r, int64_t k) {
    if constexpr (W == WeightFormat::mxfp4)
      return Codes::E2m1{};
    else if constexpr (format.zeros)
      return Codes::MinusZero{Codes::zeros<G>(r.zeros + k / format.group)};
    else
      return Codes::MinusEight{};
  }

  static Simd::F scale(const Row& r, int64_t k) {
    return Codes::scale<format.scale>(r.scales, format.group ? k / format.group : 0);
  }

  static Step codes(const Row& r, int64_t k) {
    const char* from = address(r, k);
    const auto pair = [&](int64_t i) {
      const char* p = from + i * 2 * Simd::lanes * format.bits / 8;
      if constexpr (format.bits == 4)
        return Codes::nibbles(p, meaning<1>(r, k));
      else if constexpr (W == WeightFormat::fp8_b128)
        return Codes::e4m3_over_256(p);
      else
        return Codes::int8(p);
    };
    Step b;
#pragma GCC unroll 2
    for (int j = 0; j < step / Simd::lanes; j += 2) {
      const Codes::Pair two = pair(j / 2);
      b.vec[j] = two.first;
      b.vec[j + 1] = two.second;
    }
    return b;
  }
};

}  // namespace
}  // namespace moerun::cpu
