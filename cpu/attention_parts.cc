#include "cpu/attention_parts.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/activations.h"

namespace moerun::cpu {
namespace {

// Added to the score of a key that is not seen, and the least that a mask may add. Finite: a query that sees
// no key (padding) gives some mean.
constexpr float kUnseen = std::numeric_limits<float>::lowest() / 4;

// A head's keys are split among threads where heads are fewer, but into no shorter parts (heuristic: about
// as long as a barrier takes), and so that the last part has all of the new ones: whoever works on it writes
// them.
constexpr int64_t kLeastKeys = 256;

}  // namespace

const float* mask_bias(const KernelTable& kernels, const AttentionBatch& batch, int64_t sequence,
                       KeyRange range, float* to) noexcept {
  const KeyMask& mask = batch.mask;
  const int64_t first = range.first, count = range.last - range.first;
  if (!mask.data && batch.tokens == 1) return nullptr;
  for (int64_t t = 0; t < batch.tokens; ++t) {
    const int64_t at = sequence * mask.sequence_stride + t * mask.token_stride + first;
    float* row = to + t * count;
    if (!mask.data) {
      for (int64_t k = 0; k < count; ++k) row[k] = first + k <= batch.cache.past + t ? 0.0f : kUnseen;
    } else if (mask.kind == MaskKind::seen) {
      const auto* seen = static_cast<const uint8_t*>(mask.data) + at;
      for (int64_t k = 0; k < count; ++k) row[k] = seen[k] ? 0.0f : kUnseen;
    } else {
      kernels.convert(offset(mask.data, at, mask.type), mask.type, row, DType::f32, count);
      for (int64_t k = 0; k < count; ++k) row[k] = std::max(row[k], kUnseen);
    }
  }
  return to;
}

int64_t parts_of_keys(int threads, int64_t heads, const AttentionBatch& batch) {
  const int64_t keys = batch.cache.past + batch.tokens;
  return std::max<int64_t>(
      1, std::min((threads + heads - 1) / heads, keys / std::max(kLeastKeys, batch.tokens)));
}

float* join_row(const KeyParts& p, int64_t row, const float* sink) noexcept {
  float* sum = p.sums(0) + row * p.width;
  float largest = sink ? *sink : p.most(0)[row];
  for (int64_t i = 0; i < p.parts; ++i) largest = std::max(largest, p.most(i)[row]);
  float total = sink ? std::exp(*sink - largest) : 0.0f;
  for (int64_t i = 0; i < p.parts; ++i) {
    const float* from = p.sums(i) + row * p.width;
    const float share = std::exp(p.most(i)[row] - largest);
    total += share * p.total(i)[row];
    for (int64_t d = 0; d < p.width; ++d) sum[d] = (i ? sum[d] : 0.0f) + share * from[d];
  }
  for (int64_t d = 0; d < p.width; ++d) sum[d] /= total;
  return sum;
}

}  // namespace moerun::cpu
