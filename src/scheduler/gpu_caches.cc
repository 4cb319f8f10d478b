#include "src/scheduler/gpu_caches.h"

#include <algorithm>

#include "src/error.h"

namespace moerun {
namespace {

void add(CacheStats& sum, const CacheStats& s) {
  sum.hits += s.hits;
  sum.misses += s.misses;
  sum.evictions += s.evictions;
  sum.prefetch_used += s.prefetch_used;
  sum.prefetch_wasted += s.prefetch_wasted;
}

void add(DmaStats& sum, const DmaStats& s) {
  sum.demanded += s.demanded;
  sum.demanded_bytes += s.demanded_bytes;
  sum.prefetches += s.prefetches;
  sum.prefetched_bytes += s.prefetched_bytes;
  sum.completed += s.completed;
  sum.cancelled += s.cancelled;
  sum.promoted += s.promoted;
  sum.busy_seconds += s.busy_seconds;
  sum.timed_bytes += s.timed_bytes;
}

}  // namespace

void GpuCaches::add_layer(int32_t experts, int32_t top_k, int64_t blob_bytes) {
  discard();
  const auto of_size = [&](const Pool& pool) { return pool.blob_bytes == blob_bytes; };
  auto pool = std::find_if(pools_.begin(), pools_.end(), of_size);
  if (pool == pools_.end()) pool = pools_.insert(pools_.end(), Pool{blob_bytes, {}, nullptr});
  members_.push_back({static_cast<size_t>(pool - pools_.begin()), static_cast<int32_t>(pool->layers.size())});
  pool->layers.push_back({.policy = policy_, .num_experts = experts, .top_k = top_k});
}

int64_t GpuCaches::all_expert_bytes() const {
  int64_t total = 0;
  for (const Pool& pool : pools_)
    for (const policy::CacheOptions& layer : pool.layers) total += layer.num_experts * pool.blob_bytes;
  return total;
}

GpuCaches::Place GpuCaches::place(int layer) {
  if (!made_) make();
  const Member& member = members_[layer];
  return {pools_[member.pool].cache.get(), member.row};
}

// By the bytes of all experts, so that every cache holds the same part of them.
void GpuCaches::make() {
  discard();
  const auto all = static_cast<double>(all_expert_bytes());
  for (Pool& pool : pools_) {
    int64_t experts = 0;
    for (const policy::CacheOptions& layer : pool.layers) experts += layer.num_experts;
    const double part = static_cast<double>(experts * pool.blob_bytes) / all;
    int64_t slots = static_cast<int64_t>(static_cast<double>(bytes_) * part) / pool.blob_bytes;
    slots = std::min(slots, experts);
    while (slots > 0 && !pool.cache) {
      try {
        pool.cache =
            std::make_unique<GpuCache>(context_, pool.blob_bytes, static_cast<int32_t>(slots), pool.layers);
      } catch (const GpuOutOfMemory&) {
        if (slots == 1) throw;
        slots -= (slots + 3) / 4;
        ++shrunk_;
      }
    }
  }
  made_ = true;
  ++times_made_;
}

bool GpuCaches::shrink() {
  int64_t held = 0;
  for_each([&](const GpuCache& cache) { held += cache.table().slots() * cache.slot_bytes(); });
  if (held == 0) return false;
  bytes_ = held - held / 4;
  ++shrunk_;
  discard();
  return true;
}

void GpuCaches::discard() {
  for (Pool& pool : pools_) {
    if (!pool.cache) continue;
    add(former_, pool.cache->stats);
    add(former_dma_, pool.cache->dma().stats());
    pool.cache.reset();
  }
  made_ = false;
}

CacheStats GpuCaches::stats() const {
  CacheStats sum = former_;
  for_each([&](const GpuCache& cache) { add(sum, cache.stats); });
  return sum;
}

DmaStats GpuCaches::dma_stats() const {
  DmaStats sum = former_dma_;
  for_each([&](const GpuCache& cache) { add(sum, cache.dma().stats()); });
  return sum;
}

}  // namespace moerun
