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

// One record of an event. Who waits for it holds it, so that recording the event again changes nothing.
class Record {
 public:
  void finish(const Clock& clock);
  bool finished() const;
  Clock wait() const;  // returns what the record comes after
  std::chrono::steady_clock::time_point finished_at() const;

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool finished_ = false;
  Clock clock_;
  std::chrono::steady_clock::time_point finished_at_;
};

// Recorded any number of times; a wait is for the newest record at the time of the call.
class Event {
 public:
  explicit Event(bool timing) : timing(timing) {}
  const bool timing;

  std::shared_ptr<Record> record();
  std::shared_ptr<Record> newest() const;  // null: never recorded

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<Record> newest_;
};

// One of the few queues of the hardware: what streams give it runs in the order of submission, so that a
// stream may wait for another one's work that it has nothing to do with.
class Connection {
 public:
  int64_t take_place();
  void enter(int64_t place);  // waits until all places before it have left
  void leave();

 private:
  std::mutex mutex_;
  std::condition_variable left_;
  int64_t taken_ = 0, gone_ = 0;
};

struct Touched {
  uint64_t address = 0;
  int64_t bytes = 0;
};

struct Work {
  Operation operation;
  std::vector<Touched> touched;   // memory that must not be freed before this is done
  bool even_if_broken = false;    // runs after a fault too: what others wait for
  std::function<bool()> held_up;  // of a wait for a value: whether it has not come; else empty
  std::function<Clock()> wait;    // what comes before this, when it has come; may be empty
  std::function<void(const Operation&)> run;
  // Set by Stream::submit.
  Clock waited_for;  // by the host
  int64_t place = 0;
};

class Stream {
 public:
  struct Shake {
    uint64_t seed = 0;
    int64_t us = 0;
  };
  // `number` is the stream's place in clocks, `first` the number of operations that an earlier stream of
  // that place has had. `broken` tells whether the device has faulted. `connection` may be null.
  Stream(void* context, int number, int64_t first, Shake shake, std::shared_ptr<Connection> connection,
         std::function<bool()> broken);
  ~Stream();  // does all work first

  void* context() const { return context_; }
  int number() const { return number_; }
  int64_t operations() const;

  void submit(const HostClock& host, Work work);
  Clock clock() const;  // of all that is done
  bool idle() const;
  void synchronize() const;
  bool touches(uint64_t address, int64_t bytes) const;  // whether work that is not done does
  bool held_up() const;                                 // whether work that is not done waits for a value
  std::atomic<bool> capturing{false};

 private:
  void work_through();

  void* const context_;
  const int number_;
  const Shake shake_;
  const std::shared_ptr<Connection> connection_;
  const std::function<bool()> broken_;
  mutable std::mutex mutex_;
  mutable std::condition_variable arrived_, done_;
  std::deque<Work> queue_;  // the front is being worked at
  Clock clock_;             // of what is done
  int64_t operations_;      // submitted
  bool closing_ = false;
  std::thread thread_;  // last: it uses all the others
};

}  // namespace fakecuda
