// What a scheduler decides for one layer of one step: which experts run where, in which order, and when that
// ends. Written by every split method, executed by the engine and by the replay. Also what the methods share:
// the request, the active experts sorted by load, and simulate(), the one place that turns an assignment into
// intervals.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "src/policy/cost_model.h"

namespace moerun::policy {

struct Interval {
  int32_t expert;
  double begin_us;
  double end_us;
};

struct Plan {
  std::vector<int32_t> cpu;  // ids in the order in which they run
  std::vector<double>
      cpu_fraction;           // beside cpu: 1, or the divided expert's share of its intermediate dimension
  std::vector<int32_t> gpu;   // resident experts, the copied ones, the other part of a divided one
  std::vector<int32_t> copy;  // each of them is in gpu as well
  std::vector<double>
      copy_fraction;  // beside copy: 1, or with partial_copy what of the divided expert is copied
  double makespan_us = 0;
  std::vector<Interval> cpu_intervals, gpu_intervals, copy_intervals;

  void clear();
};

// A price of PCIe that lets what is copied ahead of demand have it where demand gains little by it. Chosen by
// replay, where 0.02 to 0.3 do about as well and prices learned from the gains of prefetches do worse: a bus
// that demand keeps busy shows no such gain, and stays busy (docs/results/hybrimoe.md).
inline constexpr double kCopyPrice = 0.2;

struct SplitRequest {
  std::span<const int32_t> loads;     // [E] tokens per expert; 0 = not active
  std::span<const uint8_t> resident;  // [E] 1 = in the GPU's cache
  CostModel cost;
  double shared_gpu_us = 0;    // the GPU is busy with shared experts for that long
  bool allow_fraction = true;  // "balanced" and "exact" may divide one expert between CPU and GPU
  // Of a divided expert that is not resident copy only the part that the GPU runs, as the last copy, so that
  // the rest can follow and complete it in the cache. Otherwise it is copied whole.
  bool partial_copy = false;
  // What a microsecond of PCIe is worth elsewhere, in microseconds of makespan:
  // "balanced" minimises the makespan plus this times the time of its copies.
  double copy_price = 0;
  // What runs of a divided expert on either side is a multiple of this share; 0: any. Only "balanced" asks.
  double share_step = 0;
};

// Throws InvalidArgument on mismatched sizes, negative loads or a cost that check() refuses.
void check(const SplitRequest& request);

struct Expert {
  int32_t load;
  int32_t id;
};

// The active experts, heaviest first. Equal loads: cached ones by ascending id, uncached ones by descending
// id, so that the light end, from which the CPU takes, starts with the smallest id (the paper's queue CQ read
// backwards).
struct ActiveExperts {
  std::vector<Expert> cached, uncached;

  void assign(const SplitRequest& request);
};

// Fills the intervals and the makespan from the four lists. CPU: cpu_first_us, then one after another, a
// part of an expert costing that fraction of it and cpu_part_us, on the GPU gpu_part_us. PCIe: one after
// another from 0. GPU: from shared_gpu_us on, one after another, a copied expert not before its copy has
// ended. `cpu_share` and `ready_us` are scratch.
struct SimulationScratch {
  std::vector<double> cpu_share;  // [E]
  std::vector<double> ready_us;   // [E]
};
void simulate(const SplitRequest& request, SimulationScratch& scratch, Plan& plan);

}  // namespace moerun::policy
