// Impact-driven prefetch (HybriMoE section IV-C): which experts of the next layers to copy while PCIe is
// idle. Called by the scheduler after a layer's demand copies are planned, with the routing predicted by the
// next layers' gates; demand copies always go first. Beyond the paper: confidence per rank and distance is
// learned from what came true, an eviction's harm is weighed, and it abstains where nothing is to be won.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "src/policy/split.h"

namespace moerun::policy {

inline constexpr int32_t kMaxDistance = 3;  // layers ahead, as in the paper

// How often an expert that was predicted `distance` layers ahead at `rank` (0 = the gate's favourite) came to
// be used: an exponential average per pair. It starts at kFirstConfidence, so that prefetching begins
// cautiously.
class PrefetchConfidence {
 public:
  static constexpr double kFirstConfidence = 0.5;  // heuristic
  static constexpr double kRate = 0.02;            // a memory of about 50 predictions (heuristic)

  // Throws InvalidArgument when ranks < 1.
  explicit PrefetchConfidence(int32_t ranks);

  void observe(int32_t distance, int32_t rank, bool used);
  // Ranks beyond the last count as the last. Throws InvalidArgument when distance is not in 1..kMaxDistance.
  double value(int32_t distance, int32_t rank) const;

 private:
  size_t index(int32_t distance, int32_t rank) const;

  int32_t ranks_;
  std::vector<double> values_;  // [kMaxDistance, ranks]
};

// One of the next layers, as predicted.
struct Forecast {
  int32_t distance = 1;
  double start_us = 0;                // from now until its experts start
  std::span<const int32_t> loads;     // [E] predicted tokens per expert
  std::span<const double> chance;     // [E] confidence that an expert with a load will be used
  std::span<const uint8_t> resident;  // [E] in the cache
  std::span<const double> left;  // [E] share still to be copied, in (0, 1]; a copy that was put off has less
  // Slots that may be given up, the one worth least first: expert ids (-1 = a free slot) and the chance that
  // the step uses them.
  std::span<const int32_t> victims;
  std::span<const double> victim_chance;
};

struct PrefetchRequest {
  std::span<const Forecast> forecasts;
  CostModel cost;
  double shared_gpu_us = 0;
  SplitMethod method = SplitMethod::balanced;
  double pcie_free_us = 0;  // from now until PCIe has finished what was demanded
  double chunk_us = 0;      // a demand copy may wait for one chunk of a prefetch
  bool impact = true;       // false: most confident first, whatever it saves (for comparison)
};

struct Prefetch {
  int32_t distance;
  int32_t expert;
  int32_t victim;  // -1: a free slot
  double gain_us;  // expected
};

struct PrefetchScratch {
  SplitScratch split;
  Plan plan;
  std::vector<std::vector<uint8_t>> resident;  // [forecast][E], with what has been chosen
  std::vector<size_t> next_victim;             // [forecast]
};

// Ordered; each arrives before its layer starts. For an expert e of a forecast the gain is
//   chance(e) * (makespan without e - makespan with e) - victim_chance * the same - (1 - chance(e)) *
//   chunk_us,
// the planner's own makespans, re-planned after every choice; the largest gain per byte goes first. Empty
// (abstention) when PCIe has no time left or no gain is positive.
void prefetch(const PrefetchRequest& request, PrefetchScratch& scratch, std::vector<Prefetch>& out);

}  // namespace moerun::policy
