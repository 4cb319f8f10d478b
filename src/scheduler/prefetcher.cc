#include "src/scheduler/prefetcher.h"

#include <algorithm>
#include <numeric>

namespace moerun {
namespace {

constexpr double kLayerTimeRate = 0.1;  // of the mean time from layer to layer (heuristic)
// Victims on offer to each layer ahead: more than fit through the bus in three layers' time (heuristic).
constexpr size_t kMostVictims = 16;
constexpr double kHistoryRate = 0.1;  // as the replay's

}  // namespace

void Prefetcher::add_layer(int32_t experts, int32_t top_k) {
  hints_.push_back({.loads = std::vector<int32_t>(experts, 0),
                    .ranks = std::vector<int32_t>(experts, 0),
                    .top_k = std::min(top_k, experts),
                    .recent = std::vector<double>(history_ ? experts : 0, 0.0)});
}

// How many layers after `current` the layer runs; decoding begins again behind the last.
int32_t Prefetcher::distance_to(int layer, int current) const {
  const auto layers = static_cast<int>(hints_.size());
  const int d = ((layer - current) % layers + layers) % layers;
  return d == 0 ? layers : d;
}

void Prefetcher::hint(int layer, std::span<const int32_t> loads, std::span<const int32_t> ranks,
                      int32_t distance) {
  Hint& h = hints_[layer];
  hinted_ += h.valid ? 0 : 1;
  h.valid = true;
  if (distance < 1) distance = distance_to(layer, std::max(last_ran_, 0));
  h.distance = std::min(distance, policy::kMaxDistance);
  std::vector<int32_t>& made = h.made[h.distance - 1];
  made.assign(ranks.begin(), ranks.end());
  for (size_t e = 0; e < made.size(); ++e)
    if (loads[e] == 0) made[e] = -1;
  std::copy(loads.begin(), loads.end(), h.loads.begin());
  std::copy(ranks.begin(), ranks.end(), h.ranks.begin());
}

void Prefetcher::ran(int layer, const Target& target, std::span<const int32_t> loads, double now_us) {
  if (last_us_ > 0) layer_us_ += kLayerTimeRate * (now_us - last_us_ - layer_us_);
  last_us_ = now_us;
  last_ran_ = layer;
  if (hints_[layer].valid) judge(hints_[layer], target, loads);
  if (history_) predict_by_history(layer, loads);
}

void Prefetcher::judge(Hint& h, const Target& target, std::span<const int32_t> loads) {
  h.valid = false;
  --hinted_;
  for (int32_t d = 1; d <= policy::kMaxDistance; ++d) {
    for (size_t e = 0; e < h.made[d - 1].size(); ++e) {
      const int32_t rank = h.made[d - 1][e];
      if (rank < 0) continue;
      confidence_.observe(d, rank, loads[e] > 0);
      ++stats_.made[d - 1];
      stats_.correct[d - 1] += loads[e] > 0;
    }
    h.made[d - 1].clear();
  }
  GpuCache* cache = target.place.cache;
  for (size_t e = 0; cache && e < h.loads.size(); ++e) {
    if (h.loads[e] == 0) continue;
    const int32_t slot = cache->table().slot_of(target.place.row, static_cast<int32_t>(e));
    if (slot >= 0 && cache->table().state(slot) == SlotState::loading) cache->cancel(slot);
  }
}

// Of each of the next layers: that it uses again the experts that it used most lately.
void Prefetcher::predict_by_history(int layer, std::span<const int32_t> loads) {
  std::vector<double>& recent = hints_[layer].recent;
  for (size_t e = 0; e < loads.size(); ++e)
    recent[e] += kHistoryRate * ((loads[e] > 0 ? 1.0 : 0.0) - recent[e]);
  const auto layers = static_cast<int32_t>(hints_.size());
  for (int32_t d = 1; d <= std::min(policy::kMaxDistance, layers); ++d) {
    const int later = (layer + d) % layers;
    const Hint& h = hints_[later];
    likely_.resize(h.recent.size());
    std::iota(likely_.begin(), likely_.end(), 0);
    std::partial_sort(likely_.begin(), likely_.begin() + h.top_k, likely_.end(), [&](int32_t a, int32_t b) {
      return h.recent[a] != h.recent[b] ? h.recent[a] > h.recent[b] : a < b;
    });
    if (h.recent[likely_.front()] == 0) continue;  // it has not run yet
    likely_loads_.assign(h.recent.size(), 0);
    likely_ranks_.assign(h.recent.size(), h.top_k);
    for (int32_t rank = 0; rank < h.top_k; ++rank) {
      likely_loads_[likely_[rank]] = h.recent[likely_[rank]] > 0;
      likely_ranks_[likely_[rank]] = rank;
    }
    hint(later, likely_loads_, likely_ranks_, d);
  }
}

void Prefetcher::begin_forecasts(int current) {
  size_t count = 0;
  for (int32_t d = 1; d <= policy::kMaxDistance && d <= static_cast<int32_t>(hints_.size()); ++d) {
    const int layer = (current + d) % static_cast<int>(hints_.size());
    if (!hints_[layer].valid) continue;
    if (count == ahead_.size()) ahead_.emplace_back();
    ahead_[count].layer = layer;
    ahead_[count].distance = d;
    ++count;
  }
  ahead_.resize(count);
}

void Prefetcher::forecast(Ahead& ahead, const Target& target) {
  const Hint& h = hints_[ahead.layer];
  const size_t experts = h.loads.size();
  ahead.chance.assign(experts, 0);
  ahead.left.assign(experts, 1);
  ahead.resident.assign(experts, 1);  // without a cache there is nothing to do
  ahead.victims.clear();
  ahead.victim_chance.clear();
  GpuCache* cache = target.place.cache;
  if (!cache) return;
  cost_ = *target.cost;
  for (size_t e = 0; e < experts; ++e) {
    // One that is on its way is as good as there.
    ahead.resident[e] = cache->table().slot_of(target.place.row, static_cast<int32_t>(e)) >= 0;
    if (h.loads[e] > 0) ahead.chance[e] = confidence_.value(ahead.distance, h.ranks[e]);
  }
  find_victims(ahead, target);
}

// Free slots first, then the least valued experts that no layer is predicted to use.
void Prefetcher::find_victims(Ahead& ahead, const Target& target) {
  GpuCache& cache = *target.place.cache;
  const CacheTable& table = cache.table();
  const size_t free = std::min<size_t>(table.count(SlotState::free), kMostVictims);
  ahead.victims.assign(free, -1);
  ahead.victim_chance.assign(free, 0.0);
  cache.least_valued(kMostVictims - free, ahead.victims);
  for (size_t v = free; v < ahead.victims.size(); ++v)
    ahead.victim_chance.push_back(cache.chance_of_use(ahead.victims[v]));
}

const std::vector<policy::Prefetch>& Prefetcher::choose(double busy_us) {
  forecasts_.clear();
  for (const Ahead& a : ahead_)
    forecasts_.push_back({.distance = a.distance,
                          .start_us = a.distance * layer_us_,
                          .loads = hints_[a.layer].loads,
                          .chance = a.chance,
                          .resident = a.resident,
                          .left = a.left,
                          .victims = a.victims,
                          .victim_chance = a.victim_chance});
  policy::prefetch({.forecasts = forecasts_, .cost = cost_, .method = method_, .pcie_free_us = busy_us},
                   scratch_, chosen_);
  return chosen_;
}

size_t Prefetcher::index_of(int32_t distance) const {
  const auto is = [&](const Ahead& a) { return a.distance == distance; };
  return static_cast<size_t>(std::find_if(ahead_.begin(), ahead_.end(), is) - ahead_.begin());
}

void Prefetcher::copy(const Target& target, const policy::Prefetch& p, const Fences& fences) {
  target.place.cache->prefetch(target.place.row, p.expert, p.victim, fences, target.blobs->blob(p.expert),
                               target.blobs->pinned());
}

}  // namespace moerun
