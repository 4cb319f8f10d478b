// Self-attention of a few tokens on the CPU, as a decode step needs it: projections, norms of heads,
// rotation, the new keys and values into the cache, attention, output projection, in one region of the team.
// Called by src/engine; the kernels do the arithmetic.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/attention_view.h"
#include "cpu/barrier.h"
#include "cpu/buffer.h"
#include "cpu/kernel_table.h"
#include "cpu/latent_attention.h"
#include "cpu/linear_work.h"
#include "cpu/team.h"
#include "cpu/work_ranges.h"

namespace moerun::cpu {

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
  LatentAttention latent_;
};

}  // namespace moerun::cpu
