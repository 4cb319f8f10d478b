// Sorts a batch's routing by expert: which tokens, with which weights, each active expert gets.
// Called once per batch by moe_forward.cc, on the calling thread.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/kernel_table.h"
#include "src/types.h"

namespace moerun::cpu {

// The router's choice for `tokens` tokens. Ids outside of 0 .. num_experts - 1 are skipped.
struct Routing {
  const void* ids = nullptr;  // [tokens, top_k] int32 or int64
  bool ids_are_64_bit = false;
  int64_t ids_stride = 0;         // elements from token to token
  const void* weights = nullptr;  // [tokens, top_k]
  DType weights_type = DType::f32;
  int64_t weights_stride = 0;
  int64_t tokens = 0, top_k = 0;
};

// Pairs of token and expert, by expert in ascending order, within an expert by token.
struct Groups {
  std::vector<int32_t> experts;  // [active] ids
  std::vector<int32_t> offsets;  // [active + 1] of each expert's pairs
  std::vector<int32_t> rows;     // [pairs] token
  std::vector<float> weights;    // [pairs]

  int64_t active() const { return static_cast<int64_t>(experts.size()); }
  int64_t pairs() const { return offsets.empty() ? 0 : offsets.back(); }
  int64_t largest() const;  // most pairs of any expert
};

// Fills `groups` (whose memory is reused) with tokens [first, first + count) of the routing; rows count from
// `first`. Experts whose `share` [num_experts] is 0 are skipped too; null: none is.
void group_by_expert(const KernelTable& kernels, const Routing& routing, int64_t first, int64_t count,
                     int64_t num_experts, Groups& groups, const int32_t* share = nullptr);

}  // namespace moerun::cpu
