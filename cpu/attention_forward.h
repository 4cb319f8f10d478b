// Self-attention of a few tokens on the CPU, as a decode step needs it: projections, norms of heads,
// rotation, the new keys and values into the cache, attention, output projection, in one region of the team.
// Called by src/engine; the kernels do the arithmetic.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/barrier.h"
#include "cpu/buffer.h"
#include "cpu/kernel_table.h"
#include "cpu/linear_work.h"
#include "cpu/team.h"
#include "cpu/work_ranges.h"

namespace moerun::cpu {

// What is normalised after the projections: every head by itself, or a token's heads together.
enum class HeadNorm : uint8_t { none, head, row };

// Query heads g * heads / kv_heads .. share head g of keys and values.
struct AttentionView {
  LinearView query, key, value, output;  // the first three have one format
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 1.0f;
  HeadNorm norm = HeadNorm::none;
  const float* query_norm = nullptr;  // [head_dim], or [heads * head_dim] for HeadNorm::row
  const float* key_norm = nullptr;
  float epsilon = 0.0f;
  float clip = 0.0f;             // projections are clamped to [-clip, clip]; 0: they are not
  const float* sinks = nullptr;  // [heads] a score without a value, or null
};

// A matrix of numbers by token: one row for each of sequences * tokens.
struct Rotation {
  const float* cos = nullptr;  // [sequences * tokens, width]
  const float* sin = nullptr;
  int64_t width = 0;  // elements of a head that are rotated: (i, i + width / 2) by angle i
};

// The cache of one layer: keys and values [sequences, kv_heads, room, head_dim], of which `past` are there.
struct KeyValues {
  void* keys = nullptr;
  void* values = nullptr;
  DType type = DType::f32;
  int64_t sequence_stride = 0, head_stride = 0;  // elements, of both
  int64_t past = 0;
};

// What a mask says of a key: a byte, whether a query sees it, or a number that is added to its score.
enum class MaskKind : uint8_t { seen, added };

// Of past + tokens keys: mask[s * sequence_stride + t * token_stride + key]. Without one, a query sees those
// up to its own.
struct KeyMask {
  const void* data = nullptr;
  int64_t sequence_stride = 0, token_stride = 0;  // elements
  MaskKind kind = MaskKind::seen;
  DType type = DType::f32;  // of what is added
};

// x and out [sequences * tokens, hidden], rows contiguous. They may not overlap.
struct AttentionBatch {
  int64_t sequences = 1, tokens = 1;
  const void* x = nullptr;
  DType x_type = DType::f32;
  int64_t x_stride = 0;
  LinearOutput out;
  Rotation rotation;
  KeyValues cache;
  KeyMask mask;
};

class AttentionForward {
 public:
  AttentionForward(const KernelTable& kernels, int threads);

  // Writes keys and values of the new tokens behind those of the cache.
  void run(const AttentionView& layer, const AttentionBatch& batch);

  int64_t workspace_bytes() const;

 private:
  struct Step;

  const KernelTable& kernels_;
  Team team_;
  Barrier barrier_;
  WorkRanges convert_, project_, normalise_, attend_, join_, output_;
  Buffer x_, projected_, partial_, attended_;
  std::vector<Buffer> scratch_;  // by thread
};

}  // namespace moerun::cpu
