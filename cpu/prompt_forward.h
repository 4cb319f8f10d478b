// Attention of a prompt's queries over keys and values on the CPU, shared by a team. Called by src/engine for
// models whose projections, norms and rotation are somebody else's affair; the kernels do the arithmetic.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/kernel_table.h"
#include "cpu/team.h"
#include "cpu/work_ranges.h"

namespace moerun::cpu {

// A tensor [sequences, heads, tokens, width], rows contiguous; strides in elements.
struct HeadsView {
  void* data = nullptr;
  int64_t sequence_stride = 0, head_stride = 0, token_stride = 0;
};

// Query heads g * heads / kv_heads .. share head g of keys and values. See PromptArgs.
struct PromptBatch {
  int64_t sequences = 1, heads = 1, kv_heads = 1, tokens = 0, keys_count = 0;
  int64_t head_dim = 0, value_dim = 0;
  DType type = DType::f32;
  HeadsView queries, keys, values, out;
  float scale = 1.0f;
  const void* mask = nullptr;  // [sequences, tokens, keys_count]
  int64_t mask_sequence_stride = 0, mask_token_stride = 0;
  bool mask_adds = false;
  DType mask_type = DType::f32;
  const float* sinks = nullptr;  // [heads] or null
};

class PromptForward {
 public:
  PromptForward(const KernelTable& kernels, int threads);

  // Without a mask, the last token sees all keys, and each one before it one less.
  void run(const PromptBatch& batch);

  int64_t workspace_bytes() const;

 private:
  const KernelTable& kernels_;
  Team team_;
  WorkRanges work_;
  std::vector<Buffer> scratch_;  // by thread
};

}  // namespace moerun::cpu
