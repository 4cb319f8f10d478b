// What attention of a few tokens is made of, and the batches that it gets: plain values, for
// attention_forward and latent_attention.
#pragma once
#include <cstdint>

#include "cpu/linear_work.h"
#include "src/types.h"

namespace moerun::cpu {

// What is normalised after the projections: every head by itself, or a token's heads together.
enum class HeadNorm : uint8_t { none, head, row };

// Which elements of a head turn by one angle, and where they go.
enum class Pairs : uint8_t {
  halves,                // i and i + width / 2
  neighbours,            // 2 i and 2 i + 1
  neighbours_to_halves,  // 2 i and 2 i + 1, which become i and i + width / 2
};

// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): a token leaves a latent, which
// `expand` makes keys and values of every head from, and a key that all heads share. Of AttentionView it
// takes: `query` [heads * head_dim, hidden], or what `query_up` expands after a norm; `key` [rank + rotated,
// hidden], the latent, which is normalised, and the shared key; `output`; and whatever is not said of key and
// value heads.
struct LatentView {
  int64_t rank = 0;       // of a latent; 0: attention is not latent
  int64_t rotated = 0;    // width of the shared key, and of the last elements of a query that meet it
  int64_t value_dim = 0;  // of a head
  Pairs pairs = Pairs::halves;
  LinearView query_up;  // [heads * head_dim, query.outputs]; outputs 0: there is none
  LinearView expand;    // [heads * (head_dim - rotated + value_dim), rank] of a float format, without bias
};

// Query heads g * heads / kv_heads .. share head g of keys and values.
struct AttentionView {
  LinearView query, key, value, output;  // the first three have one format
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 1.0f;
  HeadNorm norm = HeadNorm::none;
  // [head_dim], or [heads * head_dim] for HeadNorm::row; latent attention: [query.outputs] if there is
  // query_up
  const float* query_norm = nullptr;
  const float* key_norm = nullptr;  // likewise; latent attention: [rank]
  float epsilon = 0.0f;
  float clip = 0.0f;             // projections are clamped to [-clip, clip]; 0: they are not
  const float* sinks = nullptr;  // [heads] a score without a value, or null
  LatentView latent;
};

// A matrix of numbers by token: one row for each of sequences * tokens.
struct Rotation {
  const float* cos = nullptr;  // [sequences * tokens, width]
  const float* sin = nullptr;
  // Elements of a head that are rotated. A pair's angle stands in columns i and i + width / 2, i being where
  // Pairs::halves would have the first of the two.
  int64_t width = 0;
};

// The cache of one layer: keys and values [sequences, kv_heads, room, head_dim], of which `past` are there.
// In latent attention, latents [sequences, room, rank] and shared keys [sequences, room, rotated].
struct KeyValues {
  void* keys = nullptr;
  void* values = nullptr;
  DType type = DType::f32;
  int64_t sequence_stride = 0, head_stride = 0;  // elements, of keys; values have as much room
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

}  // namespace moerun::cpu
