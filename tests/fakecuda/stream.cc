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

void Record::finish(const Clock& clock) {
  {
    const std::lock_guard lock(mutex_);
    finished_ = true;
    clock_ = clock;
    finished_at_ = std::chrono::steady_clock::now();
  }
  changed_.notify_all();
}

bool Record::finished() const {
  const std::lock_guard lock(mutex_);
  return finished_;
}

Clock Record::wait() const {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return finished_; });
  return clock_;
}

std::chrono::steady_clock::time_point Record::finished_at() const {
  const std::lock_guard lock(mutex_);
  return finished_at_;
}

std::shared_ptr<Record> Event::record() {
  auto record = std::make_shared<Record>();
  const std::lock_guard lock(mutex_);
  newest_ = record;
  return record;
}

std::shared_ptr<Record> Event::newest() const {
  const std::lock_guard lock(mutex_);
  return newest_;
}

int64_t Connection::take_place() {
  const std::lock_guard lock(mutex_);
  return taken_++;
}

void Connection::enter(int64_t place) {
  std::unique_lock lock(mutex_);
  left_.wait(lock, [&] { return gone_ == place; });
}

void Connection::leave() {
  {
    const std::lock_guard lock(mutex_);
    ++gone_;
  }
  left_.notify_all();
}

Stream::Stream(void* context, int number, int64_t first, Shake shake, std::shared_ptr<Connection> connection,
               std::function<bool()> broken)
    : context_(context),
      number_(number),
      shake_(shake),
      connection_(std::move(connection)),
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

void Stream::submit(const HostClock& host, Work work) {
  work.waited_for = host.read();
  {
    const std::lock_guard lock(mutex_);
    work.operation.stream = number_;
    work.operation.number = ++operations_;
    if (connection_) work.place = connection_->take_place();
    queue_.push_back(std::move(work));
  }
  arrived_.notify_one();
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

bool Stream::held_up() const {
  const std::lock_guard lock(mutex_);
  return std::any_of(queue_.begin(), queue_.end(),
                     [](const Work& work) { return work.held_up && work.held_up(); });
}

void Stream::work_through() {
  std::mt19937_64 random(shake_.seed + static_cast<uint64_t>(number_));
  for (;;) {
    Work* work = nullptr;
    {
      std::unique_lock lock(mutex_);
      arrived_.wait(lock, [&] { return closing_ || !queue_.empty(); });
      if (queue_.empty()) return;
      work = &queue_.front();  // a deque keeps its elements where they are
    }
    if (connection_) connection_->enter(work->place);
    if (shake_.us > 0)
      std::this_thread::sleep_for(std::chrono::microseconds(random() % static_cast<uint64_t>(shake_.us)));
    const Clock after = work->wait ? work->wait() : Clock{};
    {
      const std::lock_guard lock(mutex_);
      merge(clock_, work->waited_for);
      merge(clock_, after);
      clock_[number_] = work->operation.number;
      work->operation.before = clock_;
    }
    if (work->run && (work->even_if_broken || !broken_())) work->run(work->operation);
    {
      const std::lock_guard lock(mutex_);
      queue_.pop_front();
    }
    if (connection_) connection_->leave();
    done_.notify_all();
  }
}

}  // namespace fakecuda
