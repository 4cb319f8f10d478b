#include "src/scheduler/copies_ahead.h"

#include <algorithm>
#include <string>
#include <utility>

#include "src/error.h"

namespace moerun {

void CopiesAhead::add_layer(int32_t experts, int32_t top_k, std::shared_ptr<HostBlobs> blobs,
                            const policy::CostModel& cost) {
  prefetcher_.add_layer(experts, top_k);
  layers_.push_back({experts, std::move(blobs), &cost});
}

Prefetcher::Target CopiesAhead::target_of(int layer) {
  const Layer& l = layers_[layer];
  return {caches_.place(layer), l.blobs.get(), l.cost};
}

void CopiesAhead::hint(int layer, std::span<const int32_t> loads, std::span<const int32_t> ranks,
                       int32_t distance) {
  if (!prefetch_ || last_layer_ < 0) return;
  prefetcher_.hint(layer, loads, ranks, distance);
  new_hints_ = true;
}

void CopiesAhead::start(int layer, double busy_us, double alone_us) {
  last_layer_ = layer;
  new_hints_ = false;
  if (!prefetch_ || !prefetcher_.has_hints()) return;
  prefetcher_.start(layer, busy_us, fences_, [&](int l) { return target_of(l); });
  GpuCache* cache = caches_.place(layer).cache;
  if (!cache) return;
  const double chunk_us = layers_[layer].cost->copy_us * static_cast<double>(DmaQueue::kChunkBytes) /
                          static_cast<double>(cache->slot_bytes());
  cache->pump(DmaQueue::kChunksInFlight + static_cast<int>(alone_us / std::max(chunk_us, 1.0)));
}

void CopiesAhead::ran(int layer, std::span<const int32_t> loads, double now_us) {
  last_layer_ = layer;
  prefetcher_.ran(layer, target_of(layer), loads, now_us);
}

void CopiesAhead::warm_start(int layer, std::span<const double> shares) {
  const int32_t experts = layers_[layer].experts;
  if (static_cast<int64_t>(shares.size()) != experts)
    throw InvalidArgument("a warm start needs one share for each of the layer's " + std::to_string(experts) +
                          " experts");
  warm_start_.add(layer, shares);
}

bool CopiesAhead::fill() {
  if (!caches_.made()) return false;
  return warm_start_.go_on(caches_, fences_, [&](int l) -> HostBlobs& { return *layers_[l].blobs; });
}

bool CopiesAhead::pump() {
  if (new_hints_) start(last_layer_, 0, 0);
  bool busy = fill();
  caches_.for_each([&](GpuCache& cache) {
    cache.pump();
    busy |= !cache.dma().idle();
  });
  return busy;
}

}  // namespace moerun
