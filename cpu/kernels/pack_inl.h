// Packing: tokens' activations become vectors of tokens, the form that tile_inl.h multiplies. Included after
// a Simd and a Dot.
//
// Layout: [vector][word of K][token of the vector][group] X: lanes x lanes blocks of words are transposed in
// registers, about 4 cycles per 64 bytes; tokens that a last vector lacks are zero. What the gate-up phase
// leaves for the down phase is in this form already.
#pragma once
#include <cstdint>

#include "cpu/kernels/rows_inl.h"

namespace moerun::cpu {
namespace {

// x[m] points at row m: `words` words, a multiple of lanes, zeros beyond K.
template <class D>
void pack_tokens(const typename D::X* const* x, int64_t tokens, int64_t words, typename D::Vec* panel) {
  for (int64_t m = 0; m < tokens; m += Simd::lanes) {
    const int64_t count = smaller(Simd::lanes, tokens - m);
    for (int64_t k = 0; k < words; k += Simd::lanes) {
      typename D::Vec r[Simd::lanes];
#pragma GCC unroll 16
      for (int i = 0; i < Simd::lanes; ++i)
        r[i] = i < count ? D::activations(x[m + i] + k * D::group) : Simd::zero();
      Simd::transpose(r);
#pragma GCC unroll 16
      for (int i = 0; i < Simd::lanes; ++i) panel[k + i] = r[i];
    }
    panel += words;
  }
}

}  // namespace
}  // namespace moerun::cpu
