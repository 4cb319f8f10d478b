#include "src/scheduler/timing.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <optional>

#include "cpu/cpu_info.h"
#include "src/error.h"
#include "src/scheduler/gpu_cache.h"
#include "src/scheduler/timed_batch.h"

namespace moerun {
namespace {

using cpu::Clock;

// Runs of one point: at least 5, and more of short ones, which scatter more (heuristic).
constexpr size_t kLeastRuns = 5, kMostRuns = 40;
constexpr double kEnoughUs = 30e3;
constexpr size_t kCopyParts = 3;

struct Shape {
  int64_t experts, load;  // tokens of each
  bool half = false;      // of each expert, about half of the intermediate dimension
};
// Decode, where an expert has a token or a few, and prefill, where it has many.
constexpr std::array<Shape, 11> kShapes{{{1, 1},
                                         {2, 1},
                                         {4, 1},
                                         {8, 1},
                                         {1, 8},
                                         {4, 8},
                                         {1, 32},
                                         {4, 32},
                                         {1, 1, true},
                                         {4, 1, true},
                                         {1, 32, true}}};

class Ignore : public cpu::Observer {
 public:
  void on_groups(const cpu::Groups&) override {}
  void on_spans(const std::vector<std::array<cpu::Span, cpu::kPhases>>&, int64_t) override {}
};

// The lower quartile: what else runs on the machine only ever adds to a time, and where it goes on for long,
// costs are refreshed by what is observed. `run()` gives microseconds.
template <class Run>
double typical_us(Run&& run) {
  std::vector<double> us;
  double sum = 0;
  while (us.size() < kLeastRuns || (us.size() < kMostRuns && sum < kEnoughUs)) {
    us.push_back(run());
    sum += us.back();
  }
  const size_t quarter = us.size() / 4;
  std::nth_element(us.begin(), us.begin() + static_cast<int64_t>(quarter), us.end());
  return us[quarter];
}

// As many experts as the largest shape needs, and so many that a cache of `cache_bytes` forgets one before
// its turn comes again.
int64_t ring_size(const TimedLayer& layer, int64_t cache_bytes) {
  constexpr int64_t kMostExperts = 8, kRounds = 4;  // caches do not forget the oldest first (heuristic)
  const int64_t beyond_cache = kRounds * cache_bytes / std::max<int64_t>(layer.expert_bytes, 1) + 1;
  return std::min(layer.view.num_experts, std::max(kMostExperts, beyond_cache));
}

// What runs of each expert: `share` of the intermediate dimension, from 0 on.
int64_t share_of(const TimedLayer& layer, const Shape& shape) {
  const int64_t inter = layer.view.inter;
  return shape.half ? inter / 2 / cpu::kShareStep * cpu::kShareStep : inter;
}

// Times every shape for which there are enough experts, parts where there are any. `run(batch, share)` gives
// microseconds.
template <class Run>
std::vector<policy::ComputePoint> time_shapes(const TimedLayer& layer, const cpu::KernelTable& kernels,
                                              int64_t ring, Run&& run) {
  std::vector<policy::ComputePoint> points;
  int64_t next = 0;
  for (const Shape& shape : kShapes) {
    const int64_t share = share_of(layer, shape);
    if (shape.experts > ring || share == 0) continue;
    TimedBatch batch(kernels, layer.x_type, layer.view.hidden, layer.top_k, shape.experts, shape.load);
    const double us = typical_us([&] {
      const double taken = run(batch.of(next, ring), share);
      next = (next + shape.experts) % ring;
      return taken;
    });
    points.push_back({batch.experts(), batch.tokens(),
                      static_cast<double>(share) / static_cast<double>(layer.view.inter), us});
  }
  return points;
}

// Runs batches on the GPU alone, in a cache of its own.
class GpuAlone {
 public:
  GpuAlone(const TimedLayer& layer, const cpu::KernelTable& cpu_kernels, const cuda::ExpertKernels& kernels,
           HostBlobs& blobs, DeviceStep& step, const cuda::ContextPtr& context, int32_t slots)
      : layer_(layer),
        cpu_kernels_(cpu_kernels),
        kernels_(kernels),
        blobs_(blobs),
        step_(step),
        cache_(context, blobs.layout().bytes, slots,
               std::vector<policy::CacheOptions>{{.policy = policy::CachePolicy::lru,
                                                  .num_experts = static_cast<int32_t>(layer.view.num_experts),
                                                  .top_k = static_cast<int32_t>(layer.top_k)}}) {
    plan_.cpu_share.assign(layer.view.num_experts, 0);
  }
  // Also after an error: the cache goes only when nothing reads it any more.
  ~GpuAlone() { step_.abandon(); }
  GpuAlone(const GpuAlone&) = delete;
  GpuAlone& operator=(const GpuAlone&) = delete;

  // How long kernels ran, with `share` of each expert. Experts that the cache lacks are copied to it.
  double run(const cpu::Batch& batch, int64_t share) {
    cpu::group_by_expert(cpu_kernels_, batch.routing, 0, batch.routing.tokens, layer_.view.num_experts,
                         groups_);
    plan_.gpu = groups_.experts;
    std::fill(plan_.cpu_share.begin(), plan_.cpu_share.end(),
              static_cast<int32_t>(layer_.view.inter - share));
    const StepInput in{.cache = cache_,
                       .row = 0,
                       .blobs = blobs_,
                       .kernels = kernels_,
                       .groups = groups_,
                       .plan = plan_,
                       .tokens = batch.routing.tokens};
    step_.place(in);
    step_.reserve(in);
    std::memcpy(step_.x(), batch.x, in.tokens * layer_.view.hidden * size_of(batch.x_type));
    step_.submit(in);
    step_.finish(in);
    step_.join(in, [] { return false; });
    double us = 0;
    for (const DeviceInterval& launch : step_.launches()) us += launch.end_us - launch.begin_us;
    return us;
  }

 private:
  const TimedLayer& layer_;
  const cpu::KernelTable& cpu_kernels_;
  const cuda::ExpertKernels& kernels_;
  HostBlobs& blobs_;
  DeviceStep& step_;
  GpuCache cache_;
  cpu::Groups groups_;
  Assignment plan_;
};

}  // namespace

std::vector<policy::ComputePoint> time_cpu(const TimedLayer& layer, const cpu::KernelTable& kernels,
                                           cpu::MoeForward& forward) {
  const int64_t ring = ring_size(layer, cpu::cpu_info().l3_bytes);
  Ignore ignore;
  TimedBatch all(kernels, layer.x_type, layer.view.hidden, layer.top_k, ring, 1);
  forward.run(layer.view, all.of(0, ring), ignore);  // pages of files come into memory
  cpu::LayerView part = layer.view;
  std::vector<int32_t> shares(layer.view.num_experts);
  part.share = shares.data();
  return time_shapes(layer, kernels, ring, [&](const cpu::Batch& batch, int64_t share) {
    std::fill(shares.begin(), shares.end(), static_cast<int32_t>(share));
    const auto begin = Clock::now();
    forward.run(share < layer.view.inter ? part : layer.view, batch, ignore);
    return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
  });
}

std::vector<policy::ComputePoint> time_gpu(const TimedLayer& layer, const cpu::KernelTable& cpu_kernels,
                                           const cuda::ExpertKernels& kernels, HostBlobs& blobs,
                                           DeviceStep& step, const cuda::ContextPtr& context,
                                           int64_t most_bytes) {
  constexpr int64_t kCacheBytes = 64 << 20;  // of the largest devices
  int64_t ring = std::min(ring_size(layer, kCacheBytes), most_bytes / blobs.layout().bytes);
  std::optional<GpuAlone> gpu;
  while (ring > 0 && !gpu) {
    try {
      gpu.emplace(layer, cpu_kernels, kernels, blobs, step, context, static_cast<int32_t>(ring));
    } catch (const GpuOutOfMemory&) {
      ring /= 2;
    }
  }
  if (!gpu) return {};
  TimedBatch one(cpu_kernels, layer.x_type, layer.view.hidden, layer.top_k, 1, 1);
  for (int64_t expert = 0; expert < ring; ++expert) gpu->run(one.of(expert, ring), layer.view.inter);
  return time_shapes(layer, cpu_kernels, ring,
                     [&](const cpu::Batch& batch, int64_t share) { return gpu->run(batch, share); });
}

std::vector<policy::CopyPoint> time_copies(HostBlobs& blobs, int64_t experts,
                                           const cuda::ContextPtr& context) {
  const int64_t whole = blobs.layout().bytes;
  const cuda::DeviceMemory target(context, whole);
  DmaQueue queue(context, 1);
  std::vector<policy::CopyPoint> points;
  int64_t next = 0;
  const auto copy = [&](int64_t bytes) {
    queue.demand({.slot = 0,
                  .to = target.address(),
                  .from = blobs.blob(next),
                  .bytes = bytes,
                  .pinned = blobs.pinned()});
    queue.stream().synchronize();
    queue.settle();
    next = (next + 1) % experts;
    return queue.end_of(0).elapsed_ms(queue.begin_of(0)) * 1000;
  };
  try {
    for (size_t part = 0; part < kCopyParts; ++part)
      points.push_back({whole >> part, typical_us([&] { return copy(whole >> part); })});
  } catch (...) {
    wait_until_idle(*context, queue.stream());  // a copy may still write to what goes now
    throw;
  }
  return points;
}

}  // namespace moerun
