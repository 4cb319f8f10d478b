#include "src/scheduler/stream_gate.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "src/error.h"

namespace moerun {
namespace {

std::shared_ptr<Signals> make_signals(const cuda::ContextPtr& context, bool wanted) {
  const bool can = cuda::StreamView::borrow(*context, 0).can_wait_for_values();
  return wanted && can ? std::make_shared<Signals>(context) : nullptr;
}

// Words for a trial, given back when no stream waits for them any more.
class Borrowed {
 public:
  Borrowed(Signals& signals, size_t count) : signals_(signals) {
    while (words_.size() < count) {
      uint32_t* const word = signals_.take();
      if (!word) break;
      words_.push_back(word);
    }
  }
  ~Borrowed() {
    for (uint32_t* word : words_) signals_.give_back(word);
  }
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;

  size_t size() const { return words_.size(); }
  uint32_t* operator[](size_t i) const { return words_[i]; }

 private:
  Signals& signals_;
  std::vector<uint32_t*> words_;
};

// Whether the word is written before `polls` are over, each of 100 us or longer. Not a time: a process may be
// stopped for a while.
bool written(uint32_t* word, uint32_t before, int64_t polls) {
  constexpr std::chrono::microseconds kPause(100);
  for (; Signals::value(word) == before; --polls) {
    if (polls == 0) return false;
    std::this_thread::sleep_for(kPause);
  }
  return true;
}

}  // namespace

StreamGate::StreamGate(cuda::ContextPtr context, bool stream_waits)
    : context_(std::move(context)), signals_(make_signals(context_, stream_waits)) {}

bool StreamGate::go_on_beside(const cuda::StreamView& stream,
                              std::span<const cuda::StreamView> others) const {
  constexpr int64_t kForever = -1, kMostPolls = 20'000;  // 2 s; they have nothing else to do
  cuda::Event passed(context_);
  const Borrowed words(*signals_, 2 + others.size());
  if (words.size() < 2 + others.size()) return false;
  uint32_t* const there = words[0];
  uint32_t* const go = words[1];
  const uint32_t there_before = Signals::value(there), go_before = Signals::value(go);
  stream.write_value(there, there_before + 1);
  stream.wait_for_value(go, go_before + 1);
  bool all = true;
  try {
    stream.record(passed);
    written(there, there_before, kForever);  // what the stream did before is over
    for (size_t i = 0; i < others.size(); ++i) {
      const uint32_t before = Signals::value(words[2 + i]);
      others[i].write_value(words[2 + i], before + 1);
      all = all && written(words[2 + i], before, kMostPolls);
    }
  } catch (const GpuError&) {
    Signals::set(go, go_before + 1);
    throw;
  }
  Signals::set(go, go_before + 1);
  passed.synchronize();
  for (const cuda::StreamView& other : others) other.synchronize();
  return all;
}

bool StreamGate::may_wait(const cuda::StreamView& stream, const Trial& trial) {
  const uint64_t id = [&] {
    const cuda::ContextScope scope(*context_);
    return stream.id();
  }();
  if (stale_.exchange(false)) tried_.clear();
  const auto known =
      std::find_if(tried_.begin(), tried_.end(), [&](const auto& tried) { return tried.first == id; });
  if (known != tried_.end()) return known->second;
  const bool may = trial(stream);
  tried_.emplace_back(id, may);
  return may;
}

void StreamGate::submit(Scheduler& scheduler, const JobRef& job, const cuda::StreamView& stream,
                        const std::function<bool()>& needs_memory, const Trial& trial) {
  const std::lock_guard lock(mutex_);
  StreamOrder& order = job->make_order(context_, signals_);
  const bool allocates = needs_memory();
  const bool waits = !allocates && order.has_signal() && may_wait(stream, trial);
  order.begin(stream);
  job->set_allocates(allocates);
  order.set_stream_waits(waits);
  if (waits && scheduler.submit_unless_allocating(job)) {
    try {
      order.make_stream_wait();
    } catch (...) {
      while (!job->wait_for(std::chrono::seconds(1))) continue;  // it works on the caller's memory
      throw;
    }
    return;
  }
  order.set_stream_waits(false);
  scheduler.submit(job);
}

}  // namespace moerun
