// What an engine with a GPU needs besides an engine without one: how much device memory its cache may take,
// and every layer's experts in page-locked blobs.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/kernel_table.h"
#include "cpu/team.h"
#include "cuda/handles.h"
#include "src/engine/layer.h"
#include "src/expert_store/host_blobs.h"
#include "src/policy/evict.h"
#include "src/policy/split.h"

namespace moerun {

struct GpuBudget {
  enum class Kind : uint8_t { automatic, bytes, fraction } kind = Kind::automatic;
  int64_t bytes = 0;
  double fraction = 0;  // of all of the device's memory
};

struct GpuOptions {
  int device = 0;
  policy::SplitMethod schedule = policy::SplitMethod::balanced;
  policy::CachePolicy cache = policy::CachePolicy::mrs;
  bool prefetch = true;
  int64_t time_every = 1;    // batches
  bool history = false;      // predictions (HybridOptions)
  bool stream_waits = true;  // for batches on the device, so that no caller does (StreamGate)
  bool pin = true;           // the experts' host memory
  GpuBudget budget;
};

// Throws InvalidArgument if the budget is more than what is free now.
int64_t cache_bytes(const GpuBudget& budget, const cuda::MemoryState& memory);

// Copies every expert once into a blob, on the team's threads. Quantised experts must lie in blobs already:
// if these lie behind each other, `owner`'s memory is page-locked where it is, and nothing is copied.
std::shared_ptr<HostBlobs> store_experts(const cuda::ContextPtr& context, const LayerShape& shape,
                                         const std::vector<ExpertView>& experts, std::shared_ptr<void> owner,
                                         bool pin, const cpu::KernelTable& kernels, const cpu::Team& team);

}  // namespace moerun
