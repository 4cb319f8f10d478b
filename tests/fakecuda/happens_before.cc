#include "tests/fakecuda/happens_before.h"

#include <algorithm>

namespace fakecuda {

void merge(Clock& into, const Clock& from) {
  for (const auto& [stream, number] : from) into[stream] = std::max(into[stream], number);
}

HappensBefore::Ranges::iterator HappensBefore::split(uint64_t at) {
  auto behind = ranges_.lower_bound(at);
  if (behind == ranges_.begin()) return behind;
  auto& [begin, range] = *std::prev(behind);
  if (range.end <= at) return behind;
  Range rest = range;
  range.end = at;
  return ranges_.emplace_hint(behind, at, std::move(rest));
}

std::string HappensBefore::unordered(const Mark& earlier, const Operation& later, const char* did,
                                     const char* does) {
  if (earlier.number == 0) return {};
  const auto known = later.before.find(earlier.stream);
  if (known != later.before.end() && known->second >= earlier.number) return {};
  return later.name + " on stream " + std::to_string(later.stream) + " " + does + " bytes that " +
         earlier.name + " on stream " + std::to_string(earlier.stream) + " " + did +
         ", and nothing orders the two: an event and a wait for it are missing";
}

std::string HappensBefore::read(const Operation& operation, uint64_t address, int64_t bytes) {
  if (bytes <= 0) return {};
  const std::lock_guard lock(mutex_);
  const uint64_t end = address + static_cast<uint64_t>(bytes);
  const Mark mark{operation.stream, operation.number, operation.name};
  std::string problem;
  split(end);
  auto range = split(address);
  for (uint64_t at = address; at < end; at = range->second.end, ++range) {
    if (range == ranges_.end() || range->first > at) {
      const uint64_t until = range == ranges_.end() ? end : std::min(end, range->first);
      range = ranges_.emplace_hint(range, at, Range{until, {}, {}});
    }
    if (problem.empty()) problem = unordered(range->second.writer, operation, "wrote", "reads");
    range->second.readers[operation.stream] = mark;
  }
  return problem;
}

std::string HappensBefore::write(const Operation& operation, uint64_t address, int64_t bytes) {
  if (bytes <= 0) return {};
  const std::lock_guard lock(mutex_);
  const uint64_t end = address + static_cast<uint64_t>(bytes);
  std::string problem;
  split(end);
  auto range = split(address);
  while (range != ranges_.end() && range->first < end) {
    if (problem.empty()) problem = unordered(range->second.writer, operation, "wrote", "overwrites");
    for (const auto& [stream, reader] : range->second.readers)
      if (problem.empty()) problem = unordered(reader, operation, "read", "overwrites");
    range = ranges_.erase(range);
  }
  ranges_.emplace(address, Range{end, {operation.stream, operation.number, operation.name}, {}});
  return problem;
}

void HappensBefore::forget(uint64_t address, int64_t bytes) {
  const std::lock_guard lock(mutex_);
  const uint64_t end = address + static_cast<uint64_t>(bytes);
  split(end);
  for (auto range = split(address); range != ranges_.end() && range->first < end;)
    range = ranges_.erase(range);
}

}  // namespace fakecuda
