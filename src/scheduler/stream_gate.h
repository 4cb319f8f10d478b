// The way of batches on the device into the scheduler's queue: decides whether the caller's stream may wait
// for a value in memory (StreamOrder), which the driver knows nothing of. It may not where that could stop
// the engine itself:
//   - Streams share a few hardware queues. Once for every stream it is tried whether the engine's streams go
//     on while this one waits (CUDA's documentation: "improper use of this API may deadlock").
//   - Allocating and freeing memory and loading kernels may wait for all streams of the device, in the
//   driver.
//     A stream waits only for batches that do none of it, and only if none that may is in the queue.
// Then the caller is held up until its batch is enqueued, as for an ordinary event.
//
// Queue: producers are the threads that submit, one at a time, so that the order of waits in the streams is
// that of the batches.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "cuda/handles.h"
#include "src/scheduler/scheduler.h"
#include "src/scheduler/signals.h"

namespace moerun {

class StreamGate {
 public:
  // Without `stream_waits` every caller is held up. Throws GpuError.
  StreamGate(cuda::ContextPtr context, bool stream_waits);

  // Whether `others` go on while `stream` waits. For a thread that gives them work, when they have none.
  bool go_on_beside(const cuda::StreamView& stream, std::span<const cuda::StreamView> others) const;
  // go_on_beside() in that thread.
  using Trial = std::function<bool(const cuda::StreamView&)>;

  // Queues the job behind what the stream holds now. `needs_memory`: whether the job may do what makes the
  // driver wait; asked while nobody else submits. Throws InvalidState, GpuError; the job has run then, or
  // never will.
  void submit(Scheduler& scheduler, const JobRef& job, const cuda::StreamView& stream,
              const std::function<bool()>& needs_memory, const Trial& trial);

  // Runs `change` while nobody submits.
  template <class Change>
  void between_submissions(Change&& change) {
    const std::lock_guard lock(mutex_);
    change();
  }

  // The engine has other streams now: all are tried anew.
  void forget_trials() { stale_ = true; }

 private:
  bool may_wait(const cuda::StreamView& stream, const Trial& trial);

  const cuda::ContextPtr context_;
  const std::shared_ptr<Signals> signals_;  // null: no stream waits for values
  std::mutex mutex_;
  std::vector<std::pair<uint64_t, bool>> tried_;  // a stream's id, whether it may wait
  std::atomic<bool> stale_{false};                // set by the scheduler's thread, for tried_
};

}  // namespace moerun
