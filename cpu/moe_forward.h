// One layer of experts on the CPU: groups tokens by expert, then gate-up-activation and down-weight-sum, each
// phase shared by a team with one barrier between. Called by src/engine; the kernels do the arithmetic.
#pragma once
#include <array>
#include <chrono>
#include <cstdint>
#include <vector>

#include "cpu/barrier.h"
#include "cpu/buffer.h"
#include "cpu/grouping.h"
#include "cpu/kernel_table.h"
#include "cpu/node_split.h"
#include "cpu/row_items.h"
#include "cpu/team.h"
#include "cpu/work_ranges.h"
#include "src/types.h"

namespace moerun::cpu {

// A layer's experts and shape, as the kernels see it.
struct LayerView {
  const ExpertView* experts = nullptr;  // [num_experts]
  int64_t num_experts = 0, hidden = 0, inter = 0;
  WeightFormat format = WeightFormat::f32;
  ActivationSpec activation;
  // [num_experts] how much of the intermediate dimension runs here, from 0 on; 0: the expert runs elsewhere.
  // Null: all of every expert. A share is a multiple of kShareStep, or `inter`.
  const int32_t* share = nullptr;

  int64_t share_of(int64_t expert) const { return share ? share[expert] : inter; }
};

// Whole scale groups of every format, and whole 64 bytes of 4-bit codes.
constexpr int32_t kShareStep = 128;

// x [tokens, hidden] and out [tokens, hidden], rows contiguous. They may not overlap.
struct Batch {
  const void* x = nullptr;
  DType x_type = DType::f32;
  int64_t x_stride = 0;  // elements from token to token
  void* out = nullptr;
  DType out_type = DType::f32;
  int64_t out_stride = 0;
  Routing routing;

  Batch tokens(int64_t first, int64_t count) const;  // a part of it
};

enum Phase : int { kConvert = 0, kGateUp = 1, kDown = 2, kPhases = 3 };

using Clock = std::chrono::steady_clock;

// When one thread was busy with one phase; begin == end if it had none.
struct Span {
  Clock::time_point begin, end;
};

// Sees what was done; both calls come from the calling thread, after each part of a batch.
class Observer {
 public:
  virtual ~Observer() = default;
  virtual void on_groups(const Groups& groups) = 0;
  virtual void on_spans(const std::vector<std::array<Span, kPhases>>& by_thread, int64_t tokens) = 0;
};

// Runs batches one at a time, on memory that grows to the largest batch seen and is then reused.
class MoeForward {
 public:
  MoeForward(const KernelTable& kernels, NodeSplit split);

  void run(const LayerView& layer, const Batch& batch, Observer& observer);

  const Team& team() const { return team_; }
  const NodeSplit& split() const { return split_; }
  int64_t workspace_bytes() const;

 private:
  void run_part(const LayerView& layer, const Batch& batch, int64_t first, int64_t count);

  const KernelTable& kernels_;
  const NodeSplit split_;
  Team team_;
  Barrier barrier_;
  std::array<WorkRanges, kPhases> work_;
  RowItems up_items_, down_items_;
  std::vector<std::array<Span, kPhases>> spans_;
  Groups groups_;
  Buffer x_, h_, y_;
  std::vector<Buffer> scratch_;  // by thread
};

}  // namespace moerun::cpu
