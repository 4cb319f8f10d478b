#include "src/scheduler/job.h"

namespace moerun {

// --- Job

bool Job::wait_for(std::chrono::milliseconds patience) {
  std::unique_lock lock(mutex_);
  return finished_.wait_for(lock, patience, [&] { return done_; });
}

void Job::rethrow() const {
  if (error_) std::rethrow_exception(error_);
}

void Job::order_behind(const cuda::ContextPtr& context, uintptr_t stream) {
  if (!order_) order_.emplace(context);
  order_->begin(stream);
  ordered_ = true;
}

void Job::run() noexcept {
  std::exception_ptr error;
  try {
    call_(memory_, *this);
  } catch (...) {
    error = std::current_exception();
  }
  clear_work();
  {
    const std::lock_guard lock(mutex_);
    if (!done_) error_ = error;
  }
  finish();
}

void Job::finish() noexcept {
  const std::lock_guard lock(mutex_);
  done_ = true;
  finished_.notify_all();
}

void Job::clear_work() noexcept {
  if (destroy_) destroy_(memory_);
  call_ = nullptr;
  destroy_ = nullptr;
}

// --- JobRef

JobRef::JobRef(const JobRef& other) noexcept : pool_(other.pool_), job_(other.job_) {
  if (job_) job_->references_.fetch_add(1, std::memory_order_relaxed);
}

JobRef::~JobRef() {
  if (job_ && job_->references_.fetch_sub(1, std::memory_order_acq_rel) == 1) pool_->give_back(*job_);
}

Job* JobRef::release() {
  pool_.reset();
  return std::exchange(job_, nullptr);
}

// --- JobPool

JobRef JobPool::take() {
  const std::lock_guard lock(mutex_);
  if (free_.empty()) {
    free_.reserve(all_.size() + 1);
    all_.push_back(std::make_unique<Job>());
    free_.push_back(all_.back().get());
  }
  Job* const job = free_.back();
  free_.pop_back();
  job->references_.store(1, std::memory_order_relaxed);
  return {shared_from_this(), job};
}

void JobPool::give_back(Job& job) noexcept {
  job.clear_work();  // of a job that was never queued
  job.done_ = job.ordered_ = false;
  job.error_ = nullptr;
  std::optional<StreamOrder> gone;
  const std::lock_guard lock(mutex_);
  if (!keep_orders_) gone.swap(job.order_);
  free_.push_back(&job);
}

void JobPool::forget_devices() {
  const std::lock_guard lock(mutex_);
  keep_orders_ = false;
  for (Job* job : free_) job->order_.reset();
}

}  // namespace moerun
