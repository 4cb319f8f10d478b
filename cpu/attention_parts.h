// What attention_forward and latent_attention share: masks as numbers, and the keys of some queries in parts
// that different threads work on, joined afterwards.
#pragma once
#include <cstdint>

#include "cpu/attention_view.h"
#include "cpu/kernel_table.h"

namespace moerun::cpu {

struct KeyRange {
  int64_t first, last;
};

// What is added to the scores of a range of keys, [tokens, keys of the range]; null if every token sees all
// of them. `to`: memory for it.
const float* mask_bias(const KernelTable& kernels, const AttentionBatch& batch, int64_t sequence,
                       KeyRange range, float* to) noexcept;

// Into how many parts the keys of each of `heads` heads are split so that `threads` threads have some each.
int64_t parts_of_keys(int threads, int64_t heads, const AttentionBatch& batch);

// Results of the attend kernel for `rows` queries: by part, sums of values [rows, width], then largest scores
// and totals [rows].
struct KeyParts {
  float* data = nullptr;
  int64_t parts = 1, rows = 0, width = 0;

  int64_t floats() const { return parts * rows * (width + 2); }
  KeyParts of(int64_t item) const { return {data + item * floats(), parts, rows, width}; }
  float* sums(int64_t part) const { return data + part * rows * (width + 2); }
  float* most(int64_t part) const { return sums(part) + rows * width; }
  float* total(int64_t part) const { return most(part) + rows; }
};

// The parts of one row joined and divided by their total, [width], in the memory of the first. `sink`: a
// score without a value, or null.
float* join_row(const KeyParts& parts, int64_t row, const float* sink) noexcept;

}  // namespace moerun::cpu
