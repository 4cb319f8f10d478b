// One layer of experts on CPU and GPU together, for one batch: observe -> plan -> submit -> join.
//
//   observe  groups the tokens by expert, and sees which experts are resident
//   plan     the planner shares the experts between CPU and GPU; those that the GPU lacks get slots
//   submit   x, lists and demanded experts go to the device; kernels are launched, each behind its copy
//   join     the CPU runs its share meanwhile; its sums go to the device, are added there, and come back
//
// Called by the scheduler's thread, one batch at a time. The device is waited for once a batch, at its end.
// Whatever the plan, the result is the same but for rounding.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cpu/moe_forward.h"
#include "cuda/expert_kernels.h"
#include "cuda/handles.h"
#include "src/error.h"
#include "src/expert_store/host_blobs.h"
#include "src/policy/split.h"
#include "src/scheduler/copies_ahead.h"
#include "src/scheduler/device_batch.h"
#include "src/scheduler/device_step.h"
#include "src/scheduler/gpu_caches.h"
#include "src/scheduler/layer_costs.h"
#include "src/scheduler/planner.h"
#include "src/scheduler/step_books.h"
#include "src/scheduler/timing.h"
#include "src/trace/trace.h"

namespace moerun {

struct HybridOptions {
  policy::SplitMethod schedule = policy::SplitMethod::balanced;
  policy::CachePolicy cache = policy::CachePolicy::mrs;
  bool prefetch = true;
  int64_t time_every = 1;   // every so many batches one with a share on the GPU is timed
  bool history = false;     // predictions by what layers used lately, beside hints
  int64_t cache_bytes = 0;  // of device memory for slots
};

struct HybridLayer {
  cpu::LayerView view;  // over the blobs
  std::shared_ptr<HostBlobs> blobs;
  int64_t top_k = 0;
  bool bias = false;
};

struct HybridStats {
  int64_t slots = 0, resident = 0, cache_bytes = 0, workspace_bytes = 0;
  int64_t warm_copies = 0;  // of experts that earlier runs used
  int64_t shrunk = 0;       // times that the cache gave memory back
  CacheStats cache;
  DmaStats dma;
  PredictionStats predictions;
  StepSums work;
};

class HybridForward {
 public:
  HybridForward(const HybridOptions& options, cuda::ContextPtr context, const cpu::KernelTable& kernels,
                cpu::MoeForward& cpu, Trace& trace);
  ~HybridForward();

  // Layers are numbered from 0; the caches are made when the first batch runs after a layer was added.
  void add_layer(const HybridLayer& layer);
  // Throws InvalidArgument if the budget is too small for what the schedule must hold with such a layer.
  void check_budget(int64_t experts, int64_t top_k, int64_t blob_bytes) const;
  // For x of the kernels' type. A batch whose type has no kernels cannot run on the GPU.
  void set_kernels(int layer, std::shared_ptr<const cuda::ExpertKernels> kernels);

  // What calibration times (timing.h), with the kernels for x of x_type; and what it has found out, for all
  // layers of this one's kind. Throw as run does.
  std::vector<policy::ComputePoint> time_gpu(int layer, DType x_type);
  std::vector<policy::CopyPoint> time_copies(int layer);
  void set_cost(int layer, const policy::CostModel& cost);
  const policy::CostModel& cost(int layer) const { return layers_[layer].cost; }

  // Throws GpuError when a call to the driver fails: the cache is empty then, and the next batch starts
  // anew. After an error from which the process cannot recover, every call throws with the first cause.
  void run(int layer, const cpu::Batch& batch, cpu::Observer& observer);
  // The same for arrays on the device. Returns when the device is done with them, and calls batch.enqueued()
  // before. If it throws before that, out is filled with NaN.
  void run(int layer, const DeviceBatch& batch, cpu::Observer& observer);
  // How many tokens batches on the device may have, at least `tokens`, that need no more memory from now on;
  // 0 if that would be too much, or there are no kernels for x of that type. Throws GpuError.
  int64_t reserve(int layer, DType x_type, int64_t tokens);
  // That the device's work for batches goes through.
  std::vector<cuda::StreamView> streams() const;

  // What is predicted of the layer's next batch, for prefetching: tokens per expert, and each expert's best
  // rank; made `distance` layers before, or when the last one ran (0). Copies follow from it with the next
  // batch, or when there is nothing else to do (pump).
  void hint(int layer, std::span<const int32_t> loads, std::span<const int32_t> ranks, int32_t distance = 0);

  // Before the first batch: how earlier runs used the layer's experts (WarmStart::add), and that no more
  // layers come, so that the caches may be made and filled. Without start() the first batch does that.
  void warm_start(int layer, std::span<const double> shares);
  void start();

  // Experts of the layer stay in the cache if they are there, or need not stay any more.
  void keep(int layer, std::span<const int32_t> experts, bool kept);

  // Goes on with prefetches between batches. Whether it wants to be called again soon.
  bool pump();

  HybridStats stats() const;
  int64_t times_caches_made() const { return caches_.times_made(); }
  const cuda::ContextPtr& context() const { return context_; }

 private:
  struct Layer : HybridLayer {
    policy::CostModel& cost;                                            // shared by all layers of its kind
    std::array<std::shared_ptr<const cuda::ExpertKernels>, 3> kernels;  // by the type of x
  };
  // What the last part of a batch on the device does when all is enqueued.
  struct Ending {
    const DeviceBatch& batch;
    bool told = false;
  };
  // A part of a batch while it runs.
  struct Part {
    int layer;
    cpu::Batch batch;  // for the host; of a batch on the device, x and out are empty memory (DeviceInbox)
    cpu::Observer& observer;
    // Of a batch on the device: where its x and out lie; and its ending, if this is the last part.
    cuda::DevicePtr x = 0, out = 0;
    Ending* ending = nullptr;
    bool may_free = true;  // memory of the cache

    bool on_device() const { return out != 0; }
  };

  void check_alive() const;
  void run_parts(const Part& whole);
  void tell(Ending* ending);
  void spoil(int layer, const DeviceBatch& device) noexcept;
  CpuInterval run_on_cpu(const Part& part);
  TimedLayer timed(const Layer& layer, DType x_type) const;
  const cuda::ExpertKernels* kernels_for(const Layer& layer, const cpu::Batch& batch) const;
  void run_part(Part part);
  void observe(const Layer& layer, const cpu::Batch& batch);
  BookedStep booked(const Part& part, const Assignment& plan);
  void run_on_both(const Part& part, const StepInput& step);
  void run_cpu_share(const Part& part, const StepInput& step);
  void convert_rows(const void* from, DType from_type, int64_t from_stride, void* to, DType to_type,
                    int64_t to_stride, int64_t tokens, int64_t columns) const;
  template <class Work>
  void recovering(Work&& work);
  void recover(const GpuError* cause) noexcept;

  const HybridOptions options_;
  const cuda::ContextPtr context_;
  const cpu::KernelTable& cpu_kernels_;
  cpu::MoeForward& cpu_;
  Trace& trace_;
  LayerCosts costs_;
  std::vector<Layer> layers_;
  GpuCaches caches_;
  DeviceStep step_;
  Planner planner_;
  CopiesAhead ahead_;
  StepBooks books_;
  cpu::Groups groups_;
  std::vector<int32_t> loads_;  // [E]
  const cpu::Clock::time_point created_ = cpu::Clock::now();
  DeviceInbox inbox_;
  int64_t gpu_steps_ = 0;
  std::optional<GpuError> dead_;  // the first cause
};

// After an error nothing is known of what lies on the device.
template <class Work>
void HybridForward::recovering(Work&& work) {
  try {
    work();
  } catch (const GpuError& error) {
    recover(&error);
    throw;
  } catch (...) {
    recover(nullptr);
    throw;
  }
}

}  // namespace moerun
