// All that moves to the GPU's caches before anybody has to wait for it: prefetches that follow from
// predictions (Prefetcher), and at the start what earlier runs used (WarmStart). Demands of a running batch
// come first; this takes what they leave of the bus. Called by HybridForward, on the scheduler's thread.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "src/expert_store/host_blobs.h"
#include "src/policy/cost_model.h"
#include "src/scheduler/fences.h"
#include "src/scheduler/gpu_caches.h"
#include "src/scheduler/prefetcher.h"
#include "src/scheduler/warm_start.h"

namespace moerun {

class CopiesAhead {
 public:
  // prefetch: whether anything follows from predictions. history: they are also made here. `caches` and
  // `fences` outlive this.
  CopiesAhead(GpuCaches& caches, const Fences& fences, policy::SplitMethod method, bool prefetch,
              bool history)
      : caches_(caches), fences_(fences), prefetch_(prefetch), prefetcher_(method, prefetch && history) {}

  // `cost` is that of the layer's kind, and stays where it is.
  void add_layer(int32_t experts, int32_t top_k, std::shared_ptr<HostBlobs> blobs,
                 const policy::CostModel& cost);

  // Prefetcher::hint; nothing follows before the first batch, which makes the caches.
  void hint(int layer, std::span<const int32_t> loads, std::span<const int32_t> ranks, int32_t distance);
  // While the layer runs, or when it has run: the bus has demands for another `busy_us`, and nobody comes
  // by to start chunks for `alone_us`, so that as many are started at once as that takes.
  void start(int layer, double busy_us, double alone_us);
  // The layer has run with these loads.
  void ran(int layer, std::span<const int32_t> loads, double now_us);

  // WarmStart::add. Throws InvalidArgument if there is not one share per expert.
  void warm_start(int layer, std::span<const double> shares);
  bool has_warm_start() const { return !warm_start_.empty(); }
  // Goes on with the warm start; whether there is more to come.
  bool fill();

  // Between batches: whether it wants to be called again soon.
  bool pump();

  const PredictionStats& predictions() const { return prefetcher_.stats(); }
  int64_t warm_copies() const { return warm_start_.copies(); }

 private:
  struct Layer {
    int32_t experts;
    std::shared_ptr<HostBlobs> blobs;
    const policy::CostModel* cost;
  };
  Prefetcher::Target target_of(int layer);

  GpuCaches& caches_;
  const Fences& fences_;
  const bool prefetch_;
  Prefetcher prefetcher_;
  WarmStart warm_start_;
  std::vector<Layer> layers_;
  bool new_hints_ = false;  // that nothing has followed from yet
  int last_layer_ = -1;     // that ran or runs
};

}  // namespace moerun
