// The interface for tests: fakecuda.h.
#include "tests/fakecuda/fakecuda.h"

#include <map>
#include <string>

#include "tests/fakecuda/state.h"

namespace fakecuda {
namespace {

// What must be given back, besides bytes.
std::map<std::string, int64_t> alive(const State& state) {
  return {
      {"contexts", state.contexts()},
      {"streams", state.streams.size()},
      {"events", state.events.size()},
      {"modules", state.modules.size()},
      {"device_allocations", state.device.allocations()},
      {"pinned_allocations", state.pinned.count()},
      {"registered", state.registered.count()},
  };
}

std::map<std::string, int64_t> all_counters(const State& state) {
  std::map<std::string, int64_t> counters = alive(state);
  counters["device_bytes"] = state.device.bytes();
  counters["violations"] = state.violations();
  counters["launches"] = state.counted(Counter::launches);
  counters["h2d_copies"] = state.counted(Counter::h2d_copies);
  counters["h2d_bytes"] = state.counted(Counter::h2d_bytes);
  counters["d2h_copies"] = state.counted(Counter::d2h_copies);
  counters["d2h_bytes"] = state.counted(Counter::d2h_bytes);
  counters["d2d_copies"] = state.counted(Counter::d2d_copies);
  counters["d2d_bytes"] = state.counted(Counter::d2d_bytes);
  counters["unpinned_copies"] = state.counted(Counter::unpinned_copies);
  return counters;
}

}  // namespace

FAKECUDA_API void fakecuda_fail(const char* name, int64_t n, int code) {
  State::get().faults.fail(name, n, code);
}

FAKECUDA_API void fakecuda_capture(void* stream, int active) {
  State::get().streams.find(stream)->capturing = active != 0;
}

FAKECUDA_API const char* fakecuda_failed() {
  return State::get().faults.failed();
}

FAKECUDA_API int64_t fakecuda_calls(const char* name) {
  return State::get().faults.calls(name);
}

FAKECUDA_API int64_t fakecuda_counter(const char* name) {
  const auto counters = all_counters(State::get());
  const auto found = counters.find(name);
  return found == counters.end() ? -1 : found->second;
}

FAKECUDA_API int64_t fakecuda_leaks() {
  int64_t sum = 0;
  for (const auto& [name, count] : alive(State::get())) sum += count;
  return sum;
}

FAKECUDA_API const char* fakecuda_violation(int64_t index) {
  return State::get().violation(index);
}

FAKECUDA_API void fakecuda_reset() {
  State::get().reset();
}

}  // namespace fakecuda
