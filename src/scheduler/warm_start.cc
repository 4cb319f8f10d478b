#include "src/scheduler/warm_start.h"

#include <algorithm>

namespace moerun {

void WarmStart::add(int layer, std::span<const double> shares) {
  usage_[layer].assign(shares.begin(), shares.end());
}

void WarmStart::begin(GpuCaches& caches) {
  queue_.clear();
  next_ = 0;
  for (const auto& [layer, shares] : usage_) {
    const GpuCaches::Place place = caches.place(layer);
    if (!place.cache) continue;
    place.cache->values(place.row).start(shares);
    for (size_t e = 0; e < shares.size(); ++e)
      if (shares[e] > 0) queue_.push_back({layer, static_cast<int32_t>(e), shares[e]});
  }
  std::stable_sort(queue_.begin(), queue_.end(),
                   [](const Expert& a, const Expert& b) { return a.share > b.share; });
  seen_ = caches.times_made();
}

}  // namespace moerun
