#include "cpu/prompt_forward.h"

#include <algorithm>

#include "cpu/activations.h"

namespace moerun::cpu {

PromptForward::PromptForward(const KernelTable& kernels, int threads)
    : kernels_(kernels), team_(threads), work_(threads), scratch_(threads) {}

int64_t PromptForward::workspace_bytes() const {
  int64_t total = 0;
  for (const Buffer& b : scratch_) total += b.bytes();
  return total;
}

void PromptForward::run(const PromptBatch& batch) {
  const int64_t group = batch.heads / batch.kv_heads, rows = batch.tokens * group;
  if (batch.sequences == 0 || rows == 0) return;
  const int64_t least = (rows + kPromptRows - 1) / kPromptRows;
  const int64_t size = round_up((rows + least - 1) / least, kMostLanes), parts = (rows + size - 1) / size;
  for (Buffer& b : scratch_) b.at_least(prompt_scratch_bytes(batch.head_dim, batch.value_dim));
  work_.reset();

  const auto at = [&](const HeadsView& t, int64_t sequence, int64_t head) {
    return offset(t.data, sequence * t.sequence_stride + head * t.head_stride, batch.type);
  };
  const auto attend = [&](int64_t item, void* scratch) noexcept {
    // The longest rows first, those of the end: what is left for whoever waits is short.
    const int64_t part = parts - 1 - item / (batch.sequences * batch.kv_heads);
    const int64_t head = item % batch.kv_heads, sequence = item / batch.kv_heads % batch.sequences;
    const int64_t mask_bytes = batch.mask_adds ? size_of(batch.mask_type) : 1;
    kernels_.dense.attend_prompt({
        .queries = at(batch.queries, sequence, head * group),
        .query_stride = batch.queries.token_stride,
        .query_head_stride = batch.queries.head_stride,
        .group = group,
        .begin = part * size,
        .end = std::min((part + 1) * size, rows),
        .keys = at(batch.keys, sequence, head),
        .values = at(batch.values, sequence, head),
        .type = batch.type,
        .key_stride = batch.keys.token_stride,
        .value_stride = batch.values.token_stride,
        .keys_count = batch.keys_count,
        .past = batch.keys_count - batch.tokens,
        .head_dim = batch.head_dim,
        .value_dim = batch.value_dim,
        .scale = batch.scale,
        .mask = batch.mask ? static_cast<const char*>(batch.mask) +
                                 sequence * batch.mask_sequence_stride * mask_bytes
                           : nullptr,
        .mask_stride = batch.mask_token_stride,
        .mask_adds = batch.mask_adds,
        .mask_type = batch.mask_type,
        .sinks = batch.sinks ? batch.sinks + head * group : nullptr,
        .out = at(batch.out, sequence, head * group),
        .out_stride = batch.out.token_stride,
        .out_head_stride = batch.out.head_stride,
        .scratch = {scratch},
    });
  };
  team_.run([&](Member me) noexcept {
    work_.run(me, parts * batch.sequences * batch.kv_heads,
              [&](int64_t item) { attend(item, scratch_[me.thread].data()); });
  });
}

}  // namespace moerun::cpu
