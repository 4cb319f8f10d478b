// Rows of codes of few bits, staged as unsigned bytes, meet int8 activations: the Dot of the tiles that
// quantised formats other than int8 have with VNNI (see int8_tile_inl.h). Included after a Simd and its
// add_products.
//
// A staged row is bytes u = value + 128, in order of K, then an fp32 scale for each block of K: a block never
// has more than one scale of the format's.
#pragma once
#include <cstdint>
#include <cstring>

#include "cpu/kernels/int8_activations_inl.h"
#include "src/types.h"

namespace moerun::cpu {
namespace {

// Groups of more than 64 share one scale of several blocks: a block of activations stays as fine as int8's.
constexpr int staged_block(const FormatInfo& format) {
  return format.group < 64 ? format.group : 64;
}

template <int Block, int Bits>
struct StagedInt8Dot : Int8Activations<Block> {
  using typename Int8Activations<Block>::Sum;
  static constexpr bool staged_bytes = true;
  static constexpr bool block_scales = true;
  static constexpr int64_t block_bytes = Block * Bits / 8;  // of the matrix, where codes come from

  static Sum broadcast(const char* four_bytes) {
    int word;
    std::memcpy(&word, four_bytes, sizeof(word));
    return Sum{} + word;
  }
  static float block_scale(const char* scales, int64_t k) {
    float scale;
    std::memcpy(&scale, scales + k / Block * 4, sizeof(scale));
    return scale;
  }

  // Where the scales of a staged row begin, behind whole cache lines of 4-bit codes, and the next row: an odd
  // number of cache lines away, so that rows do not share sets of L1.
  static int64_t scales_at(int64_t k_count) { return (k_count + 127) / 128 * 128; }
  static int64_t stride(int64_t k_count) {
    const int64_t scales = (k_count + Block - 1) / Block * 4;
    return (scales_at(k_count) + (scales + 63) / 64 * 64) | 64;
  }
};

}  // namespace
}  // namespace moerun::cpu
