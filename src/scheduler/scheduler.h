// The one thread that runs submitted work, a job at a time, in the order of submission.
// Queue: producers are the threads that call Engine::submit, the consumer is the scheduler's thread. `done`
// of a job pairs with its waiter.
#pragma once
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

namespace moerun {

class Job {
 public:
  explicit Job(std::function<void()> work) : work_(std::move(work)) {}

  // Returns whether the job was done within `patience`.
  bool wait_for(std::chrono::milliseconds patience);
  // After the job is done: rethrows what it threw.
  void rethrow() const;

 private:
  friend class Scheduler;
  void run() noexcept;

  std::function<void()> work_;
  std::mutex mutex_;
  std::condition_variable finished_;
  bool done_ = false;
  std::exception_ptr error_;
};

class Scheduler {
 public:
  // `idle` is called on the thread when there is nothing to do: once, and again soon while it returns true.
  // It must not throw.
  explicit Scheduler(std::function<bool()> idle = {}) : idle_(std::move(idle)) {}
  ~Scheduler() { stop(); }
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Starts the thread when first called. Throws InvalidState after stop().
  std::shared_ptr<Job> submit(std::function<void()> work);

  // Finishes what was submitted, then ends the thread. Idempotent; several threads may call it.
  void stop();

 private:
  void loop();
  void wait_for_work(std::unique_lock<std::mutex>& lock);

  const std::function<bool()> idle_;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<std::shared_ptr<Job>> queue_;
  std::thread thread_;
  bool stopping_ = false;
  std::mutex joining_;  // two threads may not join one
};

}  // namespace moerun
