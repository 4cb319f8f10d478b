// Times one layer's experts on the CPU, on the GPU, and their copies: the points that policy::fit makes a
// cost model of. Experts take turns, so that weights come from memory, as they do between layers of a model,
// and not from a cache that they were in a moment ago. All of it takes a few seconds at most.
//
// Called by the engine between batches, on the thread that runs them. Touches no statistics and no timeline.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/moe_forward.h"
#include "cuda/expert_kernels.h"
#include "cuda/handles.h"
#include "src/expert_store/host_blobs.h"
#include "src/policy/cost_model.h"
#include "src/scheduler/device_step.h"

namespace moerun {

struct TimedLayer {
  cpu::LayerView view;
  int64_t top_k = 1;
  int64_t expert_bytes = 0;
  DType x_type = DType::f32;
};

std::vector<policy::ComputePoint> time_cpu(const TimedLayer& layer, const cpu::KernelTable& kernels,
                                           cpu::MoeForward& forward);

// Experts that lie in a cache of their own, of at most `most_bytes` and what the device has left; empty if
// that holds none. Throws GpuError.
std::vector<policy::ComputePoint> time_gpu(const TimedLayer& layer, const cpu::KernelTable& cpu_kernels,
                                           const cuda::ExpertKernels& kernels, HostBlobs& blobs,
                                           DeviceStep& step, const cuda::ContextPtr& context,
                                           int64_t most_bytes);

// Copies of whole experts and of parts of them. Throws GpuError.
std::vector<policy::CopyPoint> time_copies(HostBlobs& blobs, int64_t experts,
                                           const cuda::ContextPtr& context);

}  // namespace moerun
