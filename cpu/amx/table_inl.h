// The AMX row, over the hardware's tiles or the emulated ones: the AVX-512-BF16 row, but tokens in vectors
// are multiplied in tiles. Included after a Simd.
#pragma once
#include "cpu/amx/tile_kernel_inl.h"
#include "cpu/avx512_bf16/bf16_dot.h"
#include "cpu/avx512_bf16/quantised_dots.h"
#include "cpu/kernel_table.h"
#include "cpu/kernels/f32_dot_inl.h"
#include "cpu/kernels/linear_inl.h"

namespace moerun::cpu {
namespace {

// A Dot of bf16 activations whose tokens in vectors are multiplied in tiles.
template <class Hardware, class D>
struct InTiles : D {
  using Tiles = InTiles<Hardware, Bf16Dot>;
  static constexpr int64_t tile_k = 2 * kTileWords, group_rows = 2 * kTileRows;
  static void multiply_group(const Rows& rows, int64_t count, const Panel<Tiles>& panel, int64_t words,
                             float* c, int64_t c_stride, bool in_cache, const Rows& after) {
    static_assert(Simd::lanes == kTileTokens);
    multiply_group_in_tiles<Hardware>(rows, count, panel, words, c, c_stride, in_cache, after);
  }
};

template <class Tiles>
KernelTable make_amx_table(const char* isa, const KernelTable& avx512_bf16) {
  KernelTable table = avx512_bf16;
  table.isa = isa;
  const auto at = [&](WeightFormat f) -> ExpertKernels& {
    return table.bf16_activations[static_cast<int>(f)];
  };
  at(WeightFormat::bf16) = expert_kernels<InTiles<Tiles, Bf16Dot>>();
  at(WeightFormat::int4_g32) = expert_kernels<InTiles<Tiles, CodedDot<WeightFormat::int4_g32>>>();
  at(WeightFormat::int4_g64) = expert_kernels<InTiles<Tiles, CodedDot<WeightFormat::int4_g64>>>();
  at(WeightFormat::int4_g128) = expert_kernels<InTiles<Tiles, CodedDot<WeightFormat::int4_g128>>>();
  at(WeightFormat::int4z_g32) = expert_kernels<InTiles<Tiles, CodedDot<WeightFormat::int4z_g32>>>();
  at(WeightFormat::int4z_g64) = expert_kernels<InTiles<Tiles, CodedDot<WeightFormat::int4z_g64>>>();
  at(WeightFormat::int4z_g128) = expert_kernels<InTiles<Tiles, CodedDot<WeightFormat::int4z_g128>>>();
  at(WeightFormat::fp8_b128) = expert_kernels<InTiles<Tiles, CodedDot<WeightFormat::fp8_b128>>>();
  at(WeightFormat::mxfp4) = expert_kernels<InTiles<Tiles, CodedDot<WeightFormat::mxfp4>>>();
  table.limits.dot[static_cast<int>(DotType::bf16)] = tile_peak<Tiles>;
  return table;
}

}  // namespace
}  // namespace moerun::cpu
