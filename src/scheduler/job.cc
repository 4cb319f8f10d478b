#include "src/scheduler/job.h"

#include <string>

#include "src/error.h"

namespace moerun {

// --- Job

bool Job::wait_for(std::chrono::milliseconds patience) {
  std::unique_lock lock(mutex_);
  return finished_.wait_for(lock, patience, [&] { return done_; });
}

void Job::rethrow() {
  std::exception_ptr error;
  {
    const std::lock_guard lock(mutex_);
    error = error_;
    told_ |= error != nullptr;
  }
  if (error) std::rethrow_exception(error);
}

bool Job::has_untold_error() {
  const std::lock_guard lock(mutex_);
  return error_ && !told_;
}

void Job::rethrow_as_earlier() {
  if (!has_untold_error()) return;
  const std::string earlier = "an earlier batch has gone wrong on the GPU: ";
  try {
    rethrow();
  } catch (const GpuOutOfMemory& error) {
    throw GpuOutOfMemory(error.code, earlier + error.what());
  } catch (const GpuError& error) {
    throw GpuError(error.code, earlier + error.what());
  }
}

StreamOrder& Job::make_order(const cuda::ContextPtr& context, const std::shared_ptr<Signals>& signals) {
  if (!order_) order_ = std::make_unique<StreamOrder>(context, signals);
  ordered_ = true;
  return *order_;
}

std::exception_ptr Job::run() noexcept {
  std::exception_ptr error;
  try {
    call_(memory_, *this);
  } catch (...) {
    error = std::current_exception();
  }
  clear_work();
  if (StreamOrder* const behind = error ? order() : nullptr) behind->let_go();
  return error;
}

void Job::finish(std::exception_ptr error) noexcept {
  const std::lock_guard lock(mutex_);
  if (error) error_ = std::move(error);
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
  job.done_ = job.told_ = job.ordered_ = false;
  job.allocates_ = true;
  job.error_ = nullptr;
  std::unique_ptr<StreamOrder> gone;  // when the lock is
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
