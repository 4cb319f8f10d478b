// Memory of one step on the device and, page-locked, on the host: buffers that only grow, so that the hot
// path allocates nothing once it has seen its largest batch. Called by the scheduler's thread.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

#include "cuda/handles.h"

namespace moerun {

template <class Memory>
class Growing {
 public:
  explicit Growing(cuda::ContextPtr context) : context_(std::move(context)) {}

  // At least n bytes; what was in them is gone if they had to grow, and nothing may use them any more.
  // Throws GpuOutOfMemory, and then holds nothing.
  Memory& at_least(int64_t n) {
    if (n > bytes()) {
      memory_.reset();
      memory_ = std::make_unique<Memory>(context_, static_cast<size_t>(n));
    }
    return *memory_;
  }
  int64_t bytes() const { return memory_ ? static_cast<int64_t>(memory_->bytes()) : 0; }

 private:
  cuda::ContextPtr context_;
  std::unique_ptr<Memory> memory_;
};

// How large each buffer must be for a step, in bytes.
struct StepSizes {
  int64_t x = 0, lists = 0, h = 0, partial = 0, y = 0, cpu = 0, out = 0;
  int64_t sum() const { return x + lists + h + partial + y + cpu + out; }
};

class DeviceBuffers {
 public:
  explicit DeviceBuffers(const cuda::ContextPtr& context);

  // Grows all to `sizes`. Throws GpuOutOfMemory; sizes reached before stay.
  void reserve(const StepSizes& sizes);

  struct Device {
    cuda::DevicePtr x, lists, h, partial, y, cpu, out;
  };
  const Device& device() const { return device_; }
  // Pinned: what goes to the device and what comes back.
  struct Host {
    std::byte *x, *lists, *out;
    float* cpu;
  };
  const Host& host() const { return host_; }
  int64_t device_bytes() const;

 private:
  Growing<cuda::DeviceMemory> x_, lists_, h_, partial_, y_, cpu_, out_;
  Growing<cuda::PinnedMemory> host_x_, host_lists_, host_cpu_, host_out_;
  Device device_{};
  Host host_{};
};

}  // namespace moerun
