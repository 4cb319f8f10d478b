#include "src/trace/trace.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iomanip>
#include <set>

#include "src/error.h"

namespace moerun {
namespace {

constexpr const char* kLaneNames[] = {"CPU thread", "GPU", "H2D copies", "D2H copies", "Plan"};
constexpr int kLanesPerKind = 10000;  // lane number = kind * kLanesPerKind + thread, which also sorts them

int number(const Lane& lane) {
  return lane.kind * kLanesPerKind + lane.thread;
}

}  // namespace

void Trace::record(const TraceEvent& event) {
  const std::lock_guard lock(mutex_);
  if (events_.size() < capacity_) {
    events_.push_back(event);
  } else {
    events_[next_] = event;
    next_ = (next_ + 1) % capacity_;
  }
}

std::vector<TraceEvent> Trace::events() const {
  const std::lock_guard lock(mutex_);
  std::vector<TraceEvent> ordered(events_.begin() + next_, events_.end());
  ordered.insert(ordered.end(), events_.begin(), events_.begin() + next_);
  return ordered;
}

void Trace::write(const std::string& path) const {
  const std::vector<TraceEvent> all = events();
  TraceEvent::Time start = TraceEvent::Time::max();
  std::set<int> lanes;
  for (const TraceEvent& e : all) {
    start = std::min(start, e.begin);
    lanes.insert(number(e.lane));
  }
  std::ofstream out(path);
  out << std::fixed << std::setprecision(3) << "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n";
  const char* comma = "";
  for (const int lane : lanes) {
    const int kind = lane / kLanesPerKind;
    out << comma << R"({"ph": "M", "name": "thread_name", "pid": 1, "tid": )" << lane
        << R"(, "args": {"name": ")" << kLaneNames[kind];
    if (kind == Lane::cpu) out << ' ' << lane % kLanesPerKind;
    out << "\"}}";
    comma = ",\n";
  }
  const auto microseconds = [](auto duration) {
    return std::chrono::duration<double, std::micro>(duration).count();
  };
  for (const TraceEvent& e : all) {
    out << comma << R"({"ph": "X", "name": ")" << e.name << R"(", "pid": 1, "tid": )" << number(e.lane)
        << R"(, "ts": )" << microseconds(e.begin - start) << R"(, "dur": )" << microseconds(e.end - e.begin)
        << R"(, "args": {)";
    if (e.layer >= 0) out << R"("layer": )" << e.layer << ", ";
    out << R"("tokens": )" << e.tokens << "}}";
    comma = ",\n";
  }
  out << "\n]}\n";
  out.close();
  if (!out) throw OutputError("cannot write the trace to " + path + ": " + std::strerror(errno));
}

}  // namespace moerun
