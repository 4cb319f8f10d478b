// Numbers the points up to which the compute stream has worked, so that a copy may wait, on the device, for
// the last kernel that read a slot. Used by the scheduler's thread.
#pragma once
#include <cstdint>
#include <exception>
#include <vector>

#include "cuda/handles.h"

namespace moerun {

class Fences {
 public:
  explicit Fences(const cuda::ContextPtr& context) {
    for (size_t i = 0; i < kEvents; ++i) events_.emplace_back(context);
  }

  int64_t recorded() const { return recorded_; }
  bool passed(int64_t fence) const { return fence <= passed_; }

  // Fence number recorded() + 1 is all that `compute` has been given so far.
  void record(const cuda::StreamView& compute) {
    compute.record(events_[(recorded_ + 1) % kEvents]);
    ++recorded_;
  }
  // Later work of `stream` waits for the fence, which must have been recorded. An event that has been used
  // again stands for a later point of the same stream: waiting for it waits long enough.
  void make_wait(const cuda::StreamView& stream, int64_t fence) const {
    if (!passed(fence)) stream.wait(events_[fence % kEvents]);
  }
  // All recorded fences are known to be over.
  void all_passed() { passed_ = recorded_; }

 private:
  static constexpr size_t kEvents = 32;
  std::vector<cuda::Event> events_;
  int64_t recorded_ = 0, passed_ = 0;
};

// For after an error, and before memory is given back: waits for what a stream is doing, whatever the driver
// says. A failure repeats one that has been reported, and a stream of a lost device does nothing.
inline void wait_until_idle(const cuda::Context& context, const cuda::StreamView& stream) noexcept {
  try {
    const cuda::ContextScope scope(context);
    stream.synchronize();
  } catch (const std::exception&) {
    return;
  }
}

}  // namespace moerun
