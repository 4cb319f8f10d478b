// Streams, each a thread that works through a queue in order, and the events that order streams among each
// other. Producer of a queue: the threads that call the driver; consumer: the stream's own thread.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "tests/fakecuda/happens_before.h"

namespace fakecuda {

constexpr int kMaxStreams = 1024;  // alive at once

// What the host has waited for. Relaxed atomics: a mutex would order the host's threads for
// ThreadSanitizer, although the program does not.
class HostClock {
 public:
  void merge(const Clock& clock);
  Clock read() const;

 private:
  std::atomic<int64_t> last_[kMaxStreams] = {};
};

// Recorded any number of times; a wait is for the newest record at the time of the call.
class Event {
 public:
  explicit Event(bool timing) : timing(timing) {}
  const bool timing;

  int64_t record(const Clock& clock);  // a ticket
  void finish(int64_t ticket);
  std::pair<int64_t, Clock> newest() const;  // ticket (0: never recorded) and what it comes after
  void wait(int64_t ticket) const;
  bool finished(int64_t ticket) const;
  std::chrono::steady_clock::time_point finished_at() const;

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  int64_t recorded_ = 0, finished_ = 0;
  Clock clock_;
  std::chrono::steady_clock::time_point finished_at_;
};

struct Touched {
  uint64_t address = 0;
  int64_t bytes = 0;
};

struct Work {
  Operation operation;
  std::vector<Touched> touched;  // memory that must not be freed before this is done
  bool even_if_broken = false;   // runs after a fault too: what others wait for
  std::function<void(const Operation&)> run;
};

class Stream {
 public:
  struct Shake {
    uint64_t seed = 0;
    int64_t us = 0;
  };
  // `number` is the stream's place in clocks, `first` the number of operations that an earlier stream of
  // that place has had. `broken` tells whether the device has faulted.
  Stream(void* context, int number, int64_t first, Shake shake, std::function<bool()> broken);
  ~Stream();  // does all work first

  void* context() const { return context_; }
  int number() const { return number_; }
  int64_t operations() const;

  // Returns the clock of the operation that was appended. `after`: what else comes before it.
  Clock submit(const HostClock& host, const Clock& after, Work work);
  Clock clock() const;  // of all that was submitted
  bool idle() const;
  void synchronize() const;
  bool touches(uint64_t address, int64_t bytes) const;  // whether work that is not done does

 private:
  void work_through();

  void* const context_;
  const int number_;
  const Shake shake_;
  const std::function<bool()> broken_;
  mutable std::mutex mutex_;
  mutable std::condition_variable arrived_, done_;
  std::deque<Work> queue_;  // the front is being worked at
  Clock clock_;
  int64_t operations_;
  bool closing_ = false;
  std::thread thread_;  // last: it uses all the others
};

}  // namespace fakecuda
