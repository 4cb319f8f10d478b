// The one thread that runs submitted work, a job at a time, in the order of submission.
// Queue: producers are the threads that call Engine::submit, the consumer is the scheduler's thread. `done_`
// of a job pairs with its waiter.
#pragma once
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "src/scheduler/job.h"

namespace moerun {

class Scheduler {
 public:
  // `idle` is called on the thread when there is nothing to do: once, and again soon while it returns true.
  // It must not throw.
  explicit Scheduler(std::function<bool()> idle = {}) : idle_(std::move(idle)) {}
  ~Scheduler() { stop(); }
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // A job for submit().
  template <class Work>
  JobRef make(Work&& work) {
    return pool_->make(std::forward<Work>(work));
  }
  // Starts the thread when first called. Throws InvalidState after stop().
  void submit(JobRef job);
  // The same, unless a job that may allocate is in the queue or runs; false then.
  bool submit_unless_allocating(JobRef job);
  template <class Work>
    requires(!std::is_convertible_v<Work, JobRef>)
  JobRef submit(Work&& work) {
    JobRef job = make(std::forward<Work>(work));
    submit(job);
    return job;
  }

  // Throws what a job with a StreamOrder threw that nobody has been told of: the first one since the last
  // call.
  void throw_earlier_failure();

  // Finishes what was submitted, then ends the thread. Idempotent; several threads may call it.
  void stop();

 private:
  bool queue(JobRef& job, bool beside_allocating);
  void loop();
  void wait_for_work(std::unique_lock<std::mutex>& lock);

  const std::function<bool()> idle_;
  const std::shared_ptr<JobPool> pool_ = std::make_shared<JobPool>();
  std::mutex mutex_;
  std::condition_variable arrived_;
  Job* first_ = nullptr;  // the queue, linked by Job::next_; it holds a reference to each
  Job* last_ = nullptr;
  int64_t allocating_ = 0;  // jobs that may allocate, queued or running
  JobRef failed_;           // with a StreamOrder
  std::thread thread_;
  bool stopping_ = false;
  std::mutex joining_;  // two threads may not join one
};

}  // namespace moerun
