// Fills the GPU's cache before anybody asks: with the experts that earlier runs used most, while the bus is
// idle, into free slots only, a few at a time. What earlier runs used may be stale: it costs copies that
// nobody waits for, and is forgotten like anything else that is not used. Called by HybridForward, on the
// scheduler's thread.
#pragma once
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "src/expert_store/host_blobs.h"
#include "src/scheduler/fences.h"
#include "src/scheduler/gpu_caches.h"

namespace moerun {

class WarmStart {
 public:
  // shares [E]: the part of the tokens' choices that fell on each expert of this layer.
  void add(int layer, std::span<const double> shares);
  bool empty() const { return usage_.empty(); }

  // Begins what there is time for; whether there is more to come. `blobs_of(layer)` gives a HostBlobs&.
  // Caches that were made anew (after a lack of memory) are filled anew.
  template <class BlobsOf>
  bool go_on(GpuCaches& caches, const Fences& fences, BlobsOf&& blobs_of) {
    if (empty()) return false;
    if (seen_ != caches.times_made()) begin(caches);
    while (next_ < queue_.size()) {
      const Expert& e = queue_[next_];
      const GpuCaches::Place place = caches.place(e.layer);
      if (!place.cache || place.cache->table().count(SlotState::free) == 0) {
        ++next_;
        continue;
      }
      if (place.cache->table().count(SlotState::loading) >= kAtOnce) return true;
      HostBlobs& blobs = blobs_of(e.layer);
      copies_ += place.cache->fill(place.row, e.expert, fences, blobs.blob(e.expert), blobs.pinned());
      ++next_;
    }
    return false;
  }

  int64_t copies() const { return copies_; }

 private:
  struct Expert {
    int layer;
    int32_t expert;
    double share;
  };
  // Under way at once: little for a prediction or the end of the engine to wait for (heuristic).
  static constexpr int32_t kAtOnce = 2;

  void begin(GpuCaches& caches);

  std::map<int, std::vector<double>> usage_;
  std::vector<Expert> queue_;  // the most used first
  size_t next_ = 0;
  int64_t seen_ = 0, copies_ = 0;
};

}  // namespace moerun
