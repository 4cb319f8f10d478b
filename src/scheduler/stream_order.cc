#include "src/scheduler/stream_order.h"

#include <exception>
#include <utility>

#include "src/error.h"

namespace moerun {

StreamOrder::StreamOrder(cuda::ContextPtr context, std::shared_ptr<Signals> signals)
    : context_(std::move(context)),
      signals_(std::move(signals)),
      given_(context_),
      done_(context_),
      passed_(context_),
      word_(signals_ ? signals_->take() : nullptr),
      value_(word_ ? Signals::value(word_) : 0) {}

StreamOrder::~StreamOrder() {
  if (!word_) return;
  try {
    const cuda::ContextScope scope(*context_);
    if (has_waited_) passed_.synchronize();
  } catch (const std::exception&) {
    return;  // the word stays taken: whether a stream still waits for it is not known
  }
  signals_->give_back(word_);
}

void StreamOrder::begin(const cuda::StreamView& stream) {
  const cuda::ContextScope scope(*context_);
  if (stream.capturing())
    throw InvalidState(
        "a layer cannot be captured in a CUDA graph: where its experts run is decided anew for every batch; "
        "call it outside of the capture");
  stream_ = stream;
  stream_waits_ = joined_ = false;
  ++value_;
  stream.record(given_);
}

void StreamOrder::make_stream_wait() {
  if (!stream_) throw InvalidState("a batch without a stream has nobody to wait for it");
  const cuda::ContextScope scope(*context_);
  stream_->wait_for_value(word_, value_);
  joined_ = true;
  stream_->record(passed_);
  has_waited_ = true;
}

void StreamOrder::end(const cuda::StreamView& compute) {
  if (stream_waits_)
    compute.write_value(word_, value_);
  else
    compute.record(done_);
}

void StreamOrder::let_go() noexcept {
  if (stream_waits_) Signals::set(word_, value_);
}

void StreamOrder::join() {
  if (!stream_ || std::exchange(joined_, true)) return;
  const cuda::ContextScope scope(*context_);
  stream_->wait(done_);
}

}  // namespace moerun
