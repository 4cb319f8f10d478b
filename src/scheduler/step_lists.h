// The lists of one step that the GPU's kernels read (python/moerun/kernels/contract.py): tiles by launch, the
// pairs' tokens and weights, and where each token finds its rows of results. Built by the scheduler from the
// routing and the experts of each launch. Plain values; memory is reused.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "cpu/grouping.h"
#include "cuda/expert_kernels.h"

namespace moerun {

// One expert of a launch.
struct LaunchedExpert {
  int32_t group;  // its place among the active experts of cpu::Groups
  int32_t slot;
  int32_t inter_begin, inter_end;
};

class StepLists {
 public:
  struct Launch {
    const cuda::ExpertKernels::Regime* regime;
    int64_t first_tile, tiles;
  };

  void clear(int64_t tokens, int64_t top_k);
  // Appends a launch. `top_k` of clear() bounds a token's pairs.
  void add(const cpu::Groups& groups, std::span<const LaunchedExpert> experts,
           const cuda::ExpertKernels::Regime& regime);
  // After the last launch: fills the tokens' rows, in the order of the experts, whatever the launches were.
  void finish(const cpu::Groups& groups);

  std::span<const Launch> launches() const { return launches_; }
  int64_t pairs() const { return static_cast<int64_t>(pair_token_.size()); }
  int64_t rows() const { return rows_; }                // of y
  int64_t split_pairs() const { return split_pairs_; }  // rows of the partial sums, if any regime splits
  // The lists behind each other as they go to the device, each at a multiple of 16 bytes.
  struct Layout {
    int64_t tiles, pair_token, pair_weight, token_rows, bytes;
  };
  Layout layout() const;
  // Bounds of a batch of so many tokens, whatever its routing and however it is divided into launches.
  struct Most {
    int64_t pairs, rows, split_pairs, list_bytes;
  };
  static Most most(const cuda::ExpertKernels& kernels, int64_t experts, int64_t tokens);
  void write(std::byte* to) const;

 private:
  struct Placed {
    int32_t first_row = -1, rows_per_pair = 0;  // of an expert's first pair
  };
  int64_t tokens_ = 0, top_k_ = 0, rows_ = 0, split_pairs_ = 0;
  std::vector<Launch> launches_;
  std::vector<cuda::Tile> tiles_;
  std::vector<int32_t> pair_token_;
  std::vector<float> pair_weight_;
  std::vector<Placed> placed_;              // [groups.active()]
  std::vector<cuda::PairRows> token_rows_;  // [tokens, top_k]
  std::vector<int32_t> filled_;             // [tokens]
};

}  // namespace moerun
