// What is predicted of the next layers' routing (Layer.hint), and what follows from it: which experts to copy
// while the bus is idle, by policy::prefetch, and which of these copies to give up when the prediction has
// died. Learns how far predictions are to be trusted. Called by HybridForward, on the scheduler's thread.
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "src/expert_store/host_blobs.h"
#include "src/policy/prefetch.h"
#include "src/scheduler/fences.h"
#include "src/scheduler/gpu_caches.h"

namespace moerun {

// Of experts that were predicted 1, 2 and 3 layers before: how many, and how many of them came to be used.
struct PredictionStats {
  std::array<int64_t, policy::kMaxDistance> made{}, correct{};
};

class Prefetcher {
 public:
  // history: predicts the next layers itself, by the experts that they used lately; hints replace that.
  Prefetcher(policy::SplitMethod method, bool history) : method_(method), history_(history) {}

  // What the engine knows of a layer: where its experts go, and where they come from.
  struct Target {
    GpuCaches::Place place;
    HostBlobs* blobs;
    const policy::CostModel* cost;
  };
  void add_layer(int32_t experts, int32_t top_k);

  // For the layer's next batch: tokens per expert, and each expert's best rank among a token's (0: the
  // favourite), [E] both. Replaces what was predicted before. `distance`: how many layers before it the
  // prediction was made; 0: as many as lie between it and the one that ran last.
  void hint(int layer, std::span<const int32_t> loads, std::span<const int32_t> ranks, int32_t distance);
  bool has_hints() const { return hinted_ > 0; }
  const PredictionStats& stats() const { return stats_; }

  // The layer has run with these loads: its prediction is judged, and what it still copies is given up.
  void ran(int layer, const Target& target, std::span<const int32_t> loads, double now_us);

  // Begins what is worth copying. `current` is the layer that is running or ran last, the bus is busy with
  // demands for another `busy_us`. `target_of(layer)` gives a Target.
  template <class TargetOf>
  void start(int current, double busy_us, const Fences& fences, TargetOf&& target_of) {
    if (hinted_ == 0) return;
    begin_forecasts(current);
    for (Ahead& ahead : ahead_) forecast(ahead, target_of(ahead.layer));
    for (const policy::Prefetch& p : choose(busy_us)) {
      const Ahead& ahead = ahead_[index_of(p.distance)];
      copy(target_of(ahead.layer), p, fences);
    }
  }

 private:
  struct Hint {
    bool valid = false;
    int32_t distance = 1;               // layers ahead when it came
    std::vector<int32_t> loads, ranks;  // [E]
    // Of each distance, to be judged: [E] ranks, -1 for experts that were not predicted; empty: no
    // prediction.
    std::array<std::vector<int32_t>, policy::kMaxDistance> made;
    int32_t top_k = 1;
    std::vector<double> recent;  // [E] exponential average of being used, of history
  };
  struct Ahead {
    int layer;
    int32_t distance;
    std::vector<double> chance, left;  // [E]
    std::vector<uint8_t> resident;     // [E]
    std::vector<int32_t> victims;      // slots, -1: a free one
    std::vector<double> victim_chance;
  };

  int32_t distance_to(int layer, int current) const;
  void judge(Hint& hint, const Target& target, std::span<const int32_t> loads);
  void predict_by_history(int layer, std::span<const int32_t> loads);
  void begin_forecasts(int current);
  void forecast(Ahead& ahead, const Target& target);
  void find_victims(Ahead& ahead, const Target& target);
  const std::vector<policy::Prefetch>& choose(double busy_us);
  void copy(const Target& target, const policy::Prefetch& p, const Fences& fences);
  size_t index_of(int32_t distance) const;

  const policy::SplitMethod method_;
  const bool history_;
  policy::PrefetchConfidence confidence_{kRanks};
  std::vector<Hint> hints_;  // [layers]
  int hinted_ = 0;           // of them valid
  int last_ran_ = -1;
  double last_us_ = 0, layer_us_ = 1000;  // mean time from layer to layer; a guess before the first
  policy::CostModel cost_;
  std::vector<Ahead> ahead_;
  std::vector<policy::Forecast> forecasts_;
  policy::PrefetchScratch scratch_;
  std::vector<policy::Prefetch> chosen_;
  PredictionStats stats_;
  std::vector<int32_t> likely_, likely_loads_, likely_ranks_;  // scratch of history
  static constexpr int32_t kRanks = 32;                        // beyond the largest top_k known
};

}  // namespace moerun
