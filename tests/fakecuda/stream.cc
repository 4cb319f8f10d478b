#include "tests/fakecuda/stream.h"

#include <algorithm>

namespace fakecuda {

void HostClock::merge(const Clock& clock) {
  for (const auto& [stream, number] : clock) {
    int64_t known = last_[stream].load(std::memory_order_relaxed);
    while (known < number && !last_[stream].compare_exchange_weak(known, number, std::memory_order_relaxed)) {
    }
  }
}

Clock HostClock::read() const {
  Clock clock;
  for (int stream = 0; stream < kMaxStreams; ++stream)
    if (const int64_t number = last_[stream].load(std::memory_order_relaxed)) clock[stream] = number;
  return clock;
}

int64_t Event::record(const Clock& clock) {
  const std::lock_guard lock(mutex_);
  clock_ = clock;
  return ++recorded_;
}

void Event::finish(int64_t ticket) {
  {
    const std::lock_guard lock(mutex_);
    finished_ = std::max(finished_, ticket);
    finished_at_ = std::chrono::steady_clock::now();
  }
  changed_.notify_all();
}

std::pair<int64_t, Clock> Event::newest() const {
  const std::lock_guard lock(mutex_);
  return {recorded_, clock_};
}

void Event::wait(int64_t ticket) const {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return finished_ >= ticket; });
}

bool Event::finished(int64_t ticket) const {
  const std::lock_guard lock(mutex_);
  return finished_ >= ticket;
}

std::chrono::steady_clock::time_point Event::finished_at() const {
  const std::lock_guard lock(mutex_);
  return finished_at_;
}

Stream::Stream(void* context, int number, int64_t first, Shake shake, std::function<bool()> broken)
    : context_(context),
      number_(number),
      shake_(shake),
      broken_(std::move(broken)),
      operations_(first),
      thread_([this] { work_through(); }) {}

Stream::~Stream() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  arrived_.notify_one();
  thread_.join();
}

int64_t Stream::operations() const {
  const std::lock_guard lock(mutex_);
  return operations_;
}

Clock Stream::submit(const HostClock& host, const Clock& after, Work work) {
  const Clock waited_for = host.read();
  Clock clock;
  {
    const std::lock_guard lock(mutex_);
    merge(clock_, waited_for);
    merge(clock_, after);
    clock_[number_] = ++operations_;
    clock = clock_;
    work.operation.stream = number_;
    work.operation.number = operations_;
    work.operation.before = clock;
    queue_.push_back(std::move(work));
  }
  arrived_.notify_one();
  return clock;
}

Clock Stream::clock() const {
  const std::lock_guard lock(mutex_);
  return clock_;
}

bool Stream::idle() const {
  const std::lock_guard lock(mutex_);
  return queue_.empty();
}

void Stream::synchronize() const {
  std::unique_lock lock(mutex_);
  const int64_t last = operations_;
  done_.wait(lock, [&] { return queue_.empty() || queue_.front().operation.number > last; });
}

bool Stream::touches(uint64_t address, int64_t bytes) const {
  const std::lock_guard lock(mutex_);
  for (const Work& work : queue_)
    for (const Touched& t : work.touched)
      if (t.address < address + static_cast<uint64_t>(bytes) &&
          address < t.address + static_cast<uint64_t>(t.bytes))
        return true;
  return false;
}

void Stream::work_through() {
  std::mt19937_64 random(shake_.seed + static_cast<uint64_t>(number_));
  for (;;) {
    const Work* work = nullptr;
    {
      std::unique_lock lock(mutex_);
      arrived_.wait(lock, [&] { return closing_ || !queue_.empty(); });
      if (queue_.empty()) return;
      work = &queue_.front();  // a deque keeps its elements where they are
    }
    if (shake_.us > 0)
      std::this_thread::sleep_for(std::chrono::microseconds(random() % static_cast<uint64_t>(shake_.us)));
    if (work->even_if_broken || !broken_()) work->run(work->operation);
    {
      const std::lock_guard lock(mutex_);
      queue_.pop_front();
    }
    done_.notify_all();
  }
}

}  // namespace fakecuda
