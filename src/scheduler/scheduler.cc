#include "src/scheduler/scheduler.h"

#include "src/error.h"

namespace moerun {

void Scheduler::submit(JobRef job) {
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) throw InvalidState("the engine is closed; create a new one");
    if (!thread_.joinable()) thread_ = std::thread([this] { loop(); });
    Job* const queued = job.release();
    queued->next_ = nullptr;
    (last_ ? last_->next_ : first_) = queued;
    last_ = queued;
  }
  arrived_.notify_one();
}

void Scheduler::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  arrived_.notify_one();
  {
    const std::lock_guard lock(joining_);
    if (thread_.joinable()) thread_.join();
  }
  pool_->forget_devices();
}

void Scheduler::wait_for_work(std::unique_lock<std::mutex>& lock) {
  constexpr std::chrono::microseconds kSoon(50);  // about the time of two chunks of a prefetch
  const auto has_work = [&] { return stopping_ || first_; };
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
    JobRef job;
    {
      std::unique_lock lock(mutex_);
      wait_for_work(lock);
      if (!first_) return;
      job = JobRef(pool_, first_);
      first_ = first_->next_;
      if (!first_) last_ = nullptr;
    }
    job->run();
  }
}

}  // namespace moerun
