// Divides the budget of device memory among caches, one per size of expert, and makes them again when layers
// come or memory runs out. Called by HybridForward, on the scheduler's thread.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "src/scheduler/gpu_cache.h"

namespace moerun {

class GpuCaches {
 public:
  GpuCaches(cuda::ContextPtr context, policy::CachePolicy policy, int64_t bytes)
      : context_(std::move(context)), policy_(policy), bytes_(bytes) {}

  // Where a layer's experts go: caches are made when place() is first asked for after a layer was added.
  struct Place {
    GpuCache* cache;
    int32_t row;  // the layer in the cache's table
  };
  void add_layer(int32_t experts, int32_t top_k, int64_t blob_bytes);
  // Throws GpuOutOfMemory only if not even one slot fits: otherwise takes what it can get.
  Place place(int layer);
  // Gives up what is cached, and a quarter of the memory. False if there is nothing to give.
  bool shrink();

  // The slots that the budget allows for experts of this size, if there were no others.
  int64_t slots_of(int64_t blob_bytes) const { return bytes_ / blob_bytes; }
  int64_t bytes() const { return bytes_; }
  int64_t all_expert_bytes() const;  // of all layers
  int64_t times_shrunk() const { return shrunk_; }
  bool made() const { return made_; }
  int64_t times_made() const { return times_made_; }

  template <class Visit>
  void for_each(Visit&& visit) const {
    for (const Pool& pool : pools_)
      if (pool.cache) visit(*pool.cache);
  }
  CacheStats stats() const;  // with those of caches that were replaced
  DmaStats dma_stats() const;

 private:
  struct Pool {
    int64_t blob_bytes = 0;
    std::vector<policy::CacheOptions> layers;
    std::unique_ptr<GpuCache> cache;
  };
  struct Member {
    size_t pool;
    int32_t row;
  };
  void make();
  void discard();

  const cuda::ContextPtr context_;
  const policy::CachePolicy policy_;
  int64_t bytes_;
  int64_t shrunk_ = 0, times_made_ = 0;
  bool made_ = false;
  std::vector<Pool> pools_;
  std::vector<Member> members_;  // by layer
  CacheStats former_;
  DmaStats former_dma_;
};

}  // namespace moerun
