// The GPU's cache of experts of one size: the slab of slots, which expert lies where (CacheTable), what each
// is worth (policy::CacheValues), and the copies on their way (DmaQueue). Layers whose experts have blobs of
// equal size share one, with one budget of slots. Called by the scheduler's thread.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "src/cache_table/cache_table.h"
#include "src/dma_queue/dma_queue.h"
#include "src/policy/evict.h"
#include "src/scheduler/fences.h"

namespace moerun {

struct CacheStats {
  int64_t hits = 0, misses = 0;  // active experts that were resident when their layer ran, or not
  int64_t evictions = 0;
  int64_t prefetch_used = 0, prefetch_wasted = 0;  // evicted without having been used
};

class GpuCache {
 public:
  // `layers`: experts and top_k of each layer of the cache. Throws GpuOutOfMemory.
  GpuCache(const cuda::ContextPtr& context, int64_t slot_bytes, int32_t slots,
           std::span<const policy::CacheOptions> layers);
  ~GpuCache() { reset(); }
  GpuCache(const GpuCache&) = delete;
  GpuCache& operator=(const GpuCache&) = delete;

  // A slot for an expert, in the state loading: a free one, or that of the least valued expert, which is
  // evicted. -1 if every slot is in use or being loaded. What is copied to it must wait for last_read().
  int32_t acquire(int32_t layer, int32_t expert);
  // The last fence (fences.h) of a kernel that reads the slot; may lie ahead of what has been recorded.
  int64_t last_read(int32_t slot) const { return last_read_[slot]; }
  // A launch that ends with `fence` reads the slot: pins it.
  void read_by(int32_t slot, int64_t fence);

  // The copy of an expert's blob into its slot.
  ExpertCopy copy_of(int32_t slot, const std::byte* blob, bool pinned) const;

  // Appends up to `most` slots whose experts may be evicted, the least valued first.
  void least_valued(size_t most, std::vector<int32_t>& slots);
  // How probably the expert in a slot is used when its layer runs, by what the cache's policy knows; a guess
  // where it knows no frequencies.
  double chance_of_use(int32_t slot) const;

  // Begins a prefetch into a free slot or that of `victim` (a slot; -1: none). Whether it did.
  bool prefetch(int32_t layer, int32_t expert, int32_t victim, const Fences& fences, const std::byte* blob,
                bool pinned);
  // The same for an expert that nobody has predicted, into a free slot only.
  bool fill(int32_t layer, int32_t expert, const Fences& fences, const std::byte* blob, bool pinned);
  // Gives up a prefetch that is under way.
  void cancel(int32_t slot);
  void cancel_prefetches();  // all; waits for chunks in flight
  // Takes note of prefetches that have ended, and starts chunks of others.
  void pump(int in_flight = DmaQueue::kChunksInFlight);

  // After a step: books its copies, all of which are over.
  void settle();

  // Nothing is cached any more. Waits for copies in flight; kernels must be over.
  void reset() noexcept;

  cuda::DevicePtr slab() const { return slab_.address(); }
  int64_t slot_bytes() const { return slot_bytes_; }
  CacheTable& table() { return table_; }
  const CacheTable& table() const { return table_; }
  DmaQueue& dma() { return dma_; }
  const DmaQueue& dma() const { return dma_; }
  policy::CacheValues& values(int32_t layer) { return values_[layer]; }
  CacheStats stats;

 private:
  void evict(int32_t slot);
  int32_t begin_copy(int32_t layer, int32_t expert, const Fences& fences, const std::byte* blob, bool pinned);
  void take_ended();

  const int64_t slot_bytes_;
  const std::vector<policy::CacheOptions> options_;
  std::vector<int32_t> experts_;  // [layers]
  const cuda::ContextPtr context_;
  cuda::DeviceMemory slab_;
  CacheTable table_;
  DmaQueue dma_;
  std::vector<policy::CacheValues> values_;  // [layers]
  std::vector<int64_t> last_read_;           // [slots]
  std::vector<uint8_t> prefetched_;          // [slots] and not used yet
  std::vector<int32_t> by_value_;            // scratch: slots
};

}  // namespace moerun
