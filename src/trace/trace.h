// A timeline of what each resource did, kept in a ring of the latest events and written in Chrome's trace
// format (chrome://tracing, ui.perfetto.dev). Producers: the engine's compute sections, one at a time.
// Consumer: write().
#pragma once
#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

namespace moerun {

// A row of the timeline. CPU threads come first; GPU, H2D, D2H and what the planner expected each have one.
struct Lane {
  enum Kind : uint8_t { cpu = 0, gpu = 1, h2d = 2, d2h = 3, plan = 4 };
  Kind kind = cpu;
  int thread = 0;
};

struct TraceEvent {
  using Time = std::chrono::steady_clock::time_point;
  const char* name = "";  // a literal
  Lane lane;
  int layer = 0;  // negative: of none
  int64_t tokens = 0;
  Time begin, end;
};

class Trace {
 public:
  explicit Trace(size_t capacity = 1 << 16) : capacity_(capacity) { events_.reserve(capacity); }

  void record(const TraceEvent& event);

  // The events kept, oldest first.
  std::vector<TraceEvent> events() const;

  // Writes them as JSON; times in microseconds since the first event kept. Throws OutputError.
  void write(const std::string& path) const;

 private:
  mutable std::mutex mutex_;
  const size_t capacity_;
  size_t next_ = 0;  // where the next event goes once the ring is full
  std::vector<TraceEvent> events_;
};

}  // namespace moerun
