#include "src/scheduler/scheduler.h"

#include "src/error.h"

namespace moerun {

bool Scheduler::queue(JobRef& job, bool beside_allocating) {
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) throw InvalidState("the engine is closed; create a new one");
    if (allocating_ > 0 && !beside_allocating) return false;
    if (!thread_.joinable()) thread_ = std::thread([this] { loop(); });
    Job* const queued = job.release();
    allocating_ += queued->allocates_ ? 1 : 0;
    queued->next_ = nullptr;
    (last_ ? last_->next_ : first_) = queued;
    last_ = queued;
  }
  arrived_.notify_one();
  return true;
}

void Scheduler::submit(JobRef job) {
  queue(job, true);
}

bool Scheduler::submit_unless_allocating(JobRef job) {
  return queue(job, false);
}

void Scheduler::throw_earlier_failure() {
  JobRef failed;
  {
    const std::lock_guard lock(mutex_);
    failed = std::exchange(failed_, JobRef());
  }
  if (failed) failed->rethrow_as_earlier();
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
  {
    const std::lock_guard lock(mutex_);
    failed_ = JobRef();
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
    const bool allocates = job->allocates_;
    const std::exception_ptr error = job->run();
    {
      const std::lock_guard lock(mutex_);
      allocating_ -= allocates ? 1 : 0;  // before anybody learns that it is done, and submits the next one
    }
    job->finish(error);
    const std::lock_guard lock(mutex_);
    if (job->order() && job->has_untold_error() && !(failed_ && failed_->has_untold_error()))
      failed_ = std::move(job);
  }
}

}  // namespace moerun
