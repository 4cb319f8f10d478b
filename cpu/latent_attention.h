// Multi-head latent attention of a few tokens on the CPU (LatentView), as attention_forward runs any other:
// all of it in one region of the team.
//
// Keys and values are never expanded: a head's query meets a latent c as q . (K c) = (K^T q) . c, and the
// values of a head are V times the weighted sum of latents. So a step reads what is in the cache once for
// several heads, which all share it, and `expand` once, whatever the number of keys.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/attention_view.h"
#include "cpu/barrier.h"
#include "cpu/buffer.h"
#include "cpu/kernel_table.h"
#include "cpu/team.h"
#include "cpu/work_ranges.h"

namespace moerun::cpu {

class LatentAttention {
 public:
  LatentAttention(const KernelTable& kernels, int threads);

  // Writes latents and shared keys of the new tokens behind those of the cache.
  void run(const AttentionView& layer, const AttentionBatch& batch);

  int64_t workspace_bytes() const;

 private:
  struct Step;

  const KernelTable& kernels_;
  Team team_;
  Barrier barrier_;
  WorkRanges convert_, project_, remember_, query_, absorb_, attend_, value_, output_;
  Buffer x_, projected_, query_x_, queries_, absorbed_, partial_, attended_;
  std::vector<Buffer> scratch_;  // by thread
};

}  // namespace moerun::cpu
