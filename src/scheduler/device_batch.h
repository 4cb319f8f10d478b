// A batch whose arrays lie on the device, as HybridForward runs it; and the way of its routing, and of what
// the CPU needs of its activations, to the host. The scheduler's thread waits for them, the caller's does
// not.
#pragma once
#include <cstdint>
#include <functional>

#include "cpu/moe_forward.h"
#include "cuda/handles.h"
#include "src/scheduler/device_buffers.h"
#include "src/scheduler/stream_order.h"

namespace moerun {

struct DeviceBatch {
  cpu::Batch batch;    // addresses on the device; rows behind each other, out of x's type and elsewhere
  StreamOrder& order;  // what is given may be read, and out be written; to be ended behind the last of it
  std::function<void()> enqueued;  // called once, when the order has been ended
  bool allocates = true;           // whether memory of the driver may be allocated or freed (StreamGate)
};

class DeviceInbox {
 public:
  explicit DeviceInbox(const cuda::ContextPtr& context);

  // Pinned memory for batches of so many bytes of x and so many pairs. Throws GpuOutOfMemory.
  void reserve(int64_t x_bytes, int64_t pairs);

  // Waits until the routing is here. Returns the batch for the host: with its routing, and pinned memory for
  // x and out, which holds nothing yet. Valid until the next call.
  const cpu::Batch& fetch(const DeviceBatch& device);
  // x comes only when it is asked for.
  void start_x();
  void wait_for_x() const;

  const cuda::Stream& stream() const { return stream_; }
  void abandon() noexcept;  // after an error: waits until the stream is idle

 private:
  cuda::ContextPtr context_;
  cuda::Stream stream_;
  cuda::Event routed_, x_here_;
  Growing<cuda::PinnedMemory> routing_, x_, out_;
  cpu::Batch host_;
  cuda::DevicePtr device_x_ = 0;
  int64_t x_bytes_ = 0;
  bool x_started_ = false;
};

}  // namespace moerun
