// The place of a batch on the device among the work of a stream of the caller's: behind what was in the
// stream when the batch was submitted, and before what the caller adds once it has waited for the batch. All
// waiting is done by the device. Belongs to a Job; the caller's thread begins and joins, the scheduler's
// records.
#pragma once
#include <cstdint>
#include <utility>

#include "cuda/handles.h"

namespace moerun {

class StreamOrder {
 public:
  explicit StreamOrder(cuda::ContextPtr context)
      : given_(context), done_(context), context_(std::move(context)) {}

  // The caller's thread, before the batch is queued: what it reads and writes is ready behind this point.
  void begin(uintptr_t stream) {
    const cuda::ContextScope scope(*context_);
    stream_ = stream;
    joined_ = false;
    cuda::StreamView::borrow(*context_, stream_).record(given_);
  }
  const cuda::Event& given() const { return given_; }

  // The scheduler's thread records it behind the last work of the batch.
  cuda::Event& done() { return done_; }

  // The caller's thread, after that: what the stream is given from now on waits for the batch.
  void join() {
    if (std::exchange(joined_, true)) return;
    const cuda::ContextScope scope(*context_);
    cuda::StreamView::borrow(*context_, stream_).wait(done_);
  }

 private:
  cuda::Event given_, done_;
  cuda::ContextPtr context_;
  uintptr_t stream_ = 0;
  bool joined_ = true;
};

}  // namespace moerun
