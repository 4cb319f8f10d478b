// A piece of work for the scheduler's thread, and the pool that its memory comes from: submitting allocates
// nothing once as many jobs were under way before.
//
// A JobRef holds a job, as a shared_ptr does. Of a job that runs there are two or more: the queue's, and the
// caller's. The last one to go gives the job back to the pool.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include "src/scheduler/stream_order.h"

namespace moerun {

class Job {
 public:
  // Returns whether the job was done within `patience`.
  bool wait_for(std::chrono::milliseconds patience);
  // After the job is done: rethrows what it threw.
  void rethrow();
  // Whether it threw something that nobody has been told of yet; and to tell it as an earlier batch's error.
  bool has_untold_error();
  void rethrow_as_earlier();

  // For the work itself: the job counts as done from now on. What it throws after that, rethrow_as_earlier()
  // tells.
  void finish_early() { finish(nullptr); }

  // Of work on the device that a stream of the caller's goes before and comes after; null for other work.
  // When such a job throws, it lets the stream go.
  StreamOrder* order() { return ordered_ ? order_.get() : nullptr; }

  // For the submitting thread, before the job is queued.
  StreamOrder& make_order(const cuda::ContextPtr& context, const std::shared_ptr<Signals>& signals);
  // Whether it may allocate or free memory of the driver's: jobs may, but for those that are known not to.
  void set_allocates(bool allocates) { allocates_ = allocates; }
  bool allocates() const { return allocates_; }

 private:
  friend class JobPool;
  friend class JobRef;
  friend class Scheduler;
  static constexpr size_t kMostBytes = 256;  // of a function object; a batch has 120

  template <class Work>
  void set_work(Work&& work) {
    using Held = std::decay_t<Work>;
    static_assert(sizeof(Held) <= kMostBytes && alignof(Held) <= alignof(std::max_align_t));
    new (memory_) Held(std::forward<Work>(work));
    call_ = [](void* held, Job& job) {
      if constexpr (std::is_invocable_v<Held&, Job&>)
        (*static_cast<Held*>(held))(job);
      else
        (*static_cast<Held*>(held))();
    };
    destroy_ = [](void* held) { static_cast<Held*>(held)->~Held(); };
  }
  std::exception_ptr run() noexcept;  // what it threw, for finish()
  void finish(std::exception_ptr error) noexcept;
  void clear_work() noexcept;

  alignas(std::max_align_t) std::byte memory_[kMostBytes];
  void (*call_)(void*, Job&) = nullptr;
  void (*destroy_)(void*) = nullptr;
  std::mutex mutex_;
  std::condition_variable finished_;
  bool done_ = false, told_ = false;
  std::exception_ptr error_;
  std::unique_ptr<StreamOrder> order_;  // kept for the next one: making events takes a while
  bool ordered_ = false, allocates_ = true;
  std::atomic<int> references_{0};
  Job* next_ = nullptr;  // in the scheduler's queue
};

class JobPool;

class JobRef {
 public:
  JobRef() = default;
  JobRef(const JobRef& other) noexcept;
  JobRef(JobRef&& other) noexcept : pool_(std::move(other.pool_)), job_(std::exchange(other.job_, nullptr)) {}
  JobRef& operator=(JobRef other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(job_, other.job_);
    return *this;
  }
  ~JobRef();

  explicit operator bool() const { return job_ != nullptr; }
  Job* operator->() const { return job_; }
  Job& operator*() const { return *job_; }

 private:
  friend class JobPool;
  friend class Scheduler;
  JobRef(std::shared_ptr<JobPool> pool, Job* job) noexcept : pool_(std::move(pool)), job_(job) {}
  Job* release();  // into the scheduler's queue, which keeps the reference

  std::shared_ptr<JobPool> pool_;  // outlives its jobs
  Job* job_ = nullptr;
};

class JobPool : public std::enable_shared_from_this<JobPool> {
 public:
  // A free job with this work, or a new one.
  template <class Work>
  JobRef make(Work&& work) {
    JobRef job = take();
    job->set_work(std::forward<Work>(work));
    return job;
  }
  // No job keeps anything of the driver any more: those that are free now, others when they are.
  void forget_devices();

 private:
  friend class JobRef;
  JobRef take();
  void give_back(Job& job) noexcept;

  std::mutex mutex_;
  std::vector<std::unique_ptr<Job>> all_;
  std::vector<Job*> free_;  // with room for all
  bool keep_orders_ = true;
};

}  // namespace moerun
