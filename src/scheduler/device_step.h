// The GPU's part of one batch: slots for its experts, uploads, launches, and the way back. Owns the streams,
// the step's memory and its timings; HybridForward calls place, reserve, submit, finish and join in this
// order, on the scheduler's thread. Only reserve (when a batch is larger than any before) and join wait.
#pragma once
#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "cpu/moe_forward.h"
#include "cuda/expert_kernels.h"
#include "cuda/handles.h"
#include "src/expert_store/host_blobs.h"
#include "src/scheduler/device_buffers.h"
#include "src/scheduler/fences.h"
#include "src/scheduler/gpu_cache.h"
#include "src/scheduler/planner.h"
#include "src/scheduler/step_lists.h"
#include "src/scheduler/stream_order.h"

namespace moerun {

// What one batch needs; all of it outlives the step.
struct StepInput {
  GpuCache& cache;
  int32_t row;  // the layer in the cache's table
  HostBlobs& blobs;
  const cuda::ExpertKernels& kernels;
  const cpu::Groups& groups;
  const Assignment& plan;
  int64_t tokens;
  // Where x lies and the result goes, [tokens, H] of the kernels' type, on the device; 0: through the host.
  cuda::DevicePtr x = 0, out = 0;
  bool timed = true;  // whether events tell when launches and copies ran: calls to the driver for each
};

// When something ran on the device, in microseconds from the step's begin.
struct DeviceInterval {
  double begin_us, end_us;
  bool whole = true;  // of copies: false where a prefetch had copied a part before
};

class DeviceStep {
 public:
  explicit DeviceStep(const cuda::ContextPtr& context);

  // Decides which slot every expert of the plan gets. Only bookkeeping: no call to the driver, unless
  // prefetches must be given up because no slot is left.
  void place(const StepInput& in);
  // Throws GpuOutOfMemory.
  void reserve(const StepInput& in);
  // Memory for any plan and routing of so many tokens, if that is little enough (kMostReserved); else false.
  static constexpr int64_t kMostReserved = int64_t{256} << 20;  // a small part of any GPU (heuristic)
  bool reserve_for_any(const cuda::ExpertKernels& kernels, int64_t experts, int64_t tokens);
  // Pinned memory for x [tokens, H] of the kernels' type, to be filled before submit(); for the CPU's sums
  // [tokens, H], before finish(); and the result, after join(). x and result: where they go through the host.
  std::byte* x() { return buffers_.host().x; }
  float* cpu_sums() { return buffers_.host().cpu; }
  const std::byte* out() const { return buffers_.host().out; }

  // Whatever is launched later waits for the event, on the device.
  void wait_for(const cuda::Event& event) const { compute_.wait(event); }
  void submit(const StepInput& in);
  void finish(const StepInput& in);
  // The CPU's result for all of a batch on the device, as finish() would leave it.
  void send(cuda::DevicePtr out, const void* result, int64_t bytes) const {
    compute_.copy_to_device(out, result, bytes);
  }
  void synchronize() const { compute_.synchronize(); }
  // Behind all that was launched and sent.
  void end(StreamOrder& order) const { order.end(compute_); }
  // Not a number, in the place of a result that will not come.
  void spoil(cuda::DevicePtr out, int64_t bytes) const {
    if (bytes > 0) compute_.fill(out, 0xFF, bytes);
  }
  std::array<cuda::StreamView, 2> streams() const { return {compute_, results_}; }
  // Waits for the device, and unpins. `meanwhile` is called now and then.
  template <class Meanwhile>
  void join(const StepInput& in, Meanwhile&& meanwhile);

  // After join(); empty if the step is not timed.
  std::span<const DeviceInterval> launches() const { return launch_times_; }
  std::span<const DeviceInterval> copies() const { return copy_times_; }
  // Of the result to the host; none where it stays on the device.
  const std::optional<DeviceInterval>& way_back() const { return way_back_; }
  std::chrono::steady_clock::time_point began() const { return began_; }

  // After an error: waits until the device is idle, whatever it says.
  void abandon() noexcept;
  const Fences& fences() const { return fences_; }
  int64_t device_bytes() const { return buffers_.device_bytes(); }

 private:
  struct Placed {
    int32_t expert, slot;
    int64_t fence;  // of the launch that reads it
    int64_t after;  // its copy waits for this fence
    enum class Source : uint8_t { resident, demanded, prefetched } source;
    bool pinned = true;
  };
  struct Timer {
    cuda::Event begin, end;
  };

  int32_t find_slot(const StepInput& in, int32_t expert, size_t placed);
  bool retire_one_launch(const StepInput& in, size_t placed);
  void make_lists(const StepInput& in);
  void add_launch(const StepInput& in, size_t first, size_t count);
  void copy_what_may(const StepInput& in);
  const cuda::Event& last(const StepInput& in) const { return in.out ? combined_ : returned_.end; }
  void settle(const StepInput& in);
  double since_begin(const cuda::Event& event) const { return event.elapsed_ms(begin_) * 1000; }

  cuda::Stream compute_, results_;
  Fences fences_;
  cuda::Event uploaded_, combined_, begin_;
  Timer returned_;
  std::vector<Timer> timers_;  // of launches
  cuda::ContextPtr context_;
  DeviceBuffers buffers_;

  std::vector<Placed> placed_;  // residents first, then the others in the plan's order
  size_t residents_ = 0, retired_ = 0, copied_ = 0;
  std::vector<int32_t> group_of_;  // [E] the expert's place among the active ones
  std::vector<int32_t> loads_;     // scratch: of one launch
  std::vector<LaunchedExpert> launched_;
  StepLists lists_;
  std::vector<DeviceInterval> launch_times_, copy_times_;
  std::optional<DeviceInterval> way_back_;
  std::chrono::steady_clock::time_point began_;
};

template <class Meanwhile>
void DeviceStep::join(const StepInput& in, Meanwhile&& meanwhile) {
  constexpr auto kSpin = std::chrono::microseconds(50);
  const auto parked = std::chrono::steady_clock::now() + kSpin;
  while (!last(in).done() && (meanwhile() || std::chrono::steady_clock::now() < parked)) continue;
  last(in).synchronize();
  settle(in);
}

}  // namespace moerun
