#include "src/scheduler/scheduler.h"

#include "src/error.h"

namespace moerun {

void Job::run() noexcept {
  try {
    work_();
  } catch (...) {
    error_ = std::current_exception();
  }
  work_ = nullptr;
  const std::lock_guard lock(mutex_);
  done_ = true;
  finished_.notify_all();
}

bool Job::wait_for(std::chrono::milliseconds patience) {
  std::unique_lock lock(mutex_);
  return finished_.wait_for(lock, patience, [&] { return done_; });
}

void Job::rethrow() const {
  if (error_) std::rethrow_exception(error_);
}

std::shared_ptr<Job> Scheduler::submit(std::function<void()> work) {
  auto job = std::make_shared<Job>(std::move(work));
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) throw InvalidState("the engine is closed; create a new one");
    if (!thread_.joinable()) thread_ = std::thread([this] { loop(); });
    queue_.push_back(job);
  }
  arrived_.notify_one();
  return job;
}

void Scheduler::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  arrived_.notify_one();
  const std::lock_guard lock(joining_);
  if (thread_.joinable()) thread_.join();
}

void Scheduler::wait_for_work(std::unique_lock<std::mutex>& lock) {
  constexpr std::chrono::microseconds kSoon(50);  // about the time of two chunks of a prefetch
  const auto has_work = [&] { return stopping_ || !queue_.empty(); };
  while (!has_work()) {
    bool again = false;
    if (idle_) {
      lock.unlock();
      again = idle_();
      lock.lock();
    }
    if (!again) return arrived_.wait(lock, has_work);
    arrived_.wait_for(lock, kSoon, has_work);
  }
}

void Scheduler::loop() {
  for (;;) {
    std::shared_ptr<Job> job;
    {
      std::unique_lock lock(mutex_);
      wait_for_work(lock);
      if (queue_.empty()) return;
      job = std::move(queue_.front());
      queue_.pop_front();
    }
    job->run();
  }
}

}  // namespace moerun
