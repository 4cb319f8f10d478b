// Quantising rows of fp32 weights: what one call does. Implemented once (cpu/kernels/quantise_inl.h), built
// for every instruction set, reached through the kernel table; called by src/expert_store/quantise.cc.
#pragma once
#include <cstdint>

#include "src/types.h"

namespace moerun::cpu {

// Up to FormatInfo::block_rows rows, filled with zeros up to a multiple of 64 bytes of codes (see
// blob_layout.h).
struct QuantiseArgs {
  WeightFormat format;   // a quantised one
  const float* weights;  // [rows, columns]
  int64_t rows = 1;
  int64_t columns = 0;       // filled
  uint8_t* codes;            // [rows, columns * bits / 8]
  void* scales;              // [scale_stride] of the format's ScaleType
  uint8_t* zeros = nullptr;  // [scale_stride], where the format has zero points
};

enum class QuantiseResult : uint8_t { ok, not_finite, too_large };

}  // namespace moerun::cpu
