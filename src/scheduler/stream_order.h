// The place of a batch on the device among the work of a stream of the caller's: behind what was in the
// stream when the batch was submitted, and before what the caller adds afterwards. All waiting is done by the
// device. Belongs to a Job.
//
// A stream waits for the end of a batch in one of two ways. For an event, once the scheduler's thread has
// enqueued the batch and recorded it: until then the caller is held up (join). Or for a word of memory that
// the batch will write, which needs nothing to be enqueued: the caller goes on at once (stream_waits).
#pragma once
#include <cstdint>
#include <memory>
#include <optional>

#include "cuda/handles.h"
#include "src/scheduler/signals.h"

namespace moerun {

class StreamOrder {
 public:
  // `signals` is null where streams cannot wait for values. Throws GpuError.
  StreamOrder(cuda::ContextPtr context, std::shared_ptr<Signals> signals);
  // Waits until the stream has gone past its wait: the word is for others then.
  ~StreamOrder();
  StreamOrder(const StreamOrder&) = delete;
  StreamOrder& operator=(const StreamOrder&) = delete;

  // The caller's thread, before the batch is queued: what it reads and writes is ready behind this point.
  // Throws InvalidState if the stream is being captured into a graph, GpuError.
  void begin(const cuda::StreamView& stream);
  const cuda::Event& given() const { return given_; }

  bool has_signal() const { return word_ != nullptr; }
  // Whether the stream waits for the word; said before the batch is queued, and done when it is.
  void set_stream_waits(bool waits) { stream_waits_ = waits; }
  bool stream_waits() const { return stream_waits_; }
  void make_stream_wait();

  // The scheduler's thread, behind the last work of the batch, which is in `compute`.
  void end(const cuda::StreamView& compute);
  // After an error, when the engine's streams are idle: a stream that waits goes on.
  void let_go() noexcept;

  // The caller's thread, when the batch is enqueued: what the stream is given from now on comes behind it.
  void join();

 private:
  const cuda::ContextPtr context_;
  const std::shared_ptr<Signals> signals_;
  cuda::Event given_, done_, passed_;
  uint32_t* const word_;
  uint32_t value_;
  std::optional<cuda::StreamView> stream_;
  bool stream_waits_ = false, has_waited_ = false, joined_ = true;
};

}  // namespace moerun
