#include "src/scheduler/gpu_cache.h"

#include <algorithm>

namespace moerun {
namespace {

std::vector<int32_t> experts_of(std::span<const policy::CacheOptions> layers) {
  std::vector<int32_t> experts;
  for (const policy::CacheOptions& layer : layers) experts.push_back(layer.num_experts);
  return experts;
}

}  // namespace

GpuCache::GpuCache(const cuda::ContextPtr& context, int64_t slot_bytes, int32_t slots,
                   std::span<const policy::CacheOptions> layers)
    : slot_bytes_(slot_bytes),
      options_(layers.begin(), layers.end()),
      experts_(experts_of(layers)),
      context_(context),
      slab_(context, slots * slot_bytes),
      table_(slots, experts_),
      dma_(context, slots),
      values_(layers.begin(), layers.end()),
      last_read_(slots, 0),
      prefetched_(slots, 0) {
  by_value_.reserve(slots);
}

void GpuCache::evict(int32_t slot) {
  if (prefetched_[slot] != 0) ++stats.prefetch_wasted;
  prefetched_[slot] = 0;
  ++stats.evictions;
  table_.evict(slot);
  table_.freed(slot);  // the next copy waits for last_read(slot) on the device
}

int32_t GpuCache::acquire(int32_t layer, int32_t expert) {
  if (table_.count(SlotState::free) == 0) {
    const int32_t victim = table_.victim(values_);
    if (victim < 0) return -1;
    evict(victim);
  }
  return table_.reserve(layer, expert);
}

void GpuCache::read_by(int32_t slot, int64_t fence) {
  table_.pin(slot);
  last_read_[slot] = fence;
  if (prefetched_[slot] != 0) ++stats.prefetch_used;
  prefetched_[slot] = 0;
}

void GpuCache::least_valued(size_t most, std::vector<int32_t>& slots) {
  by_value_.clear();
  for (int32_t s = 0; s < table_.slots(); ++s)
    if (table_.state(s) == SlotState::resident && prefetched_[s] == 0) by_value_.push_back(s);
  const size_t count = std::min(most, by_value_.size());
  const auto worth = [&](int32_t s) {
    const SlotOwner owner = table_.owner(s);
    return values_[owner.layer].values()[owner.expert];
  };
  std::partial_sort(by_value_.begin(), by_value_.begin() + static_cast<int64_t>(count), by_value_.end(),
                    [&](int32_t a, int32_t b) { return worth(a) < worth(b); });
  slots.insert(slots.end(), by_value_.begin(), by_value_.begin() + static_cast<int64_t>(count));
}

double GpuCache::chance_of_use(int32_t slot) const {
  const SlotOwner owner = table_.owner(slot);
  const policy::CacheOptions& layer = options_[owner.layer];
  const double value = values_[owner.layer].values()[owner.expert];
  switch (layer.policy) {
    case policy::CachePolicy::recent:
      return value;
    case policy::CachePolicy::mrs:  // the mean share of a token's routing, of which there are top_k
      return std::min(1.0, value * layer.top_k);
    default:
      return static_cast<double>(layer.top_k) / layer.num_experts;
  }
}

ExpertCopy GpuCache::copy_of(int32_t slot, const std::byte* blob, bool pinned) const {
  return {
      .slot = slot, .to = slab() + slot * slot_bytes_, .from = blob, .bytes = slot_bytes_, .pinned = pinned};
}

bool GpuCache::prefetch(int32_t layer, int32_t expert, int32_t victim, const Fences& fences,
                        const std::byte* blob, bool pinned) {
  if (table_.slot_of(layer, expert) >= 0) return false;
  if (table_.count(SlotState::free) == 0) {
    if (victim < 0 || table_.state(victim) != SlotState::resident || dma_.busy(victim)) return false;
    evict(victim);
  }
  prefetched_[begin_copy(layer, expert, fences, blob, pinned)] = 1;
  return true;
}

bool GpuCache::fill(int32_t layer, int32_t expert, const Fences& fences, const std::byte* blob, bool pinned) {
  if (table_.slot_of(layer, expert) >= 0 || table_.count(SlotState::free) == 0) return false;
  begin_copy(layer, expert, fences, blob, pinned);
  return true;
}

int32_t GpuCache::begin_copy(int32_t layer, int32_t expert, const Fences& fences, const std::byte* blob,
                             bool pinned) {
  const int32_t slot = table_.reserve(layer, expert);
  fences.make_wait(dma_.stream(), last_read_[slot]);
  dma_.prefetch(copy_of(slot, blob, pinned));
  return slot;
}

void GpuCache::cancel(int32_t slot) {
  prefetched_[slot] = 0;
  table_.abandon(slot);
  dma_.cancel(slot);
  take_ended();
}

void GpuCache::take_ended() {
  for (const DmaQueue::Ended& e : dma_.ended()) {
    if (e.whole)
      table_.loaded(e.slot);
    else
      table_.freed(e.slot);
  }
  dma_.clear_ended();
}

void GpuCache::pump(int in_flight) {
  dma_.pump(in_flight);
  take_ended();
}

void GpuCache::cancel_prefetches() {
  for (int32_t slot = 0; slot < table_.slots(); ++slot)
    if (table_.state(slot) == SlotState::loading) cancel(slot);
  dma_.drain();
  take_ended();
}

void GpuCache::settle() {
  dma_.settle();
  take_ended();
}

void GpuCache::reset() noexcept {
  wait_until_idle(*context_, dma_.stream());
  dma_.reset();
  table_.clear();
  std::fill(last_read_.begin(), last_read_.end(), 0);
  std::fill(prefetched_.begin(), prefetched_.end(), 0);
}

}  // namespace moerun
