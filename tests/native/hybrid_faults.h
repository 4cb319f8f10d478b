// Every call to the driver fails once, one at a time; hybrid_test.cc runs it.
#pragma once
#include <cstdint>

namespace moerun {

// Of the calls of each function every `step`-th fails. A sanitizer makes a run ten times slower; an odd step
// that does not divide the script's regular counts still meets each of its parts.
void faults(int64_t step);
constexpr int64_t kSomeFaults = 29;

}  // namespace moerun
