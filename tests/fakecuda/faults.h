// Counts the calls of the driver's functions and decides which of them fail.
//
// ThreadSanitizer runs over programs that use this driver, and a mutex here would order threads that the
// program itself leaves unordered. So what is done on every call is relaxed atomics or a shared lock.
#pragma once
#include <atomic>
#include <cstdint>
#include <optional>
#include <shared_mutex>
#include <string>
#include <vector>

#include "cuda/driver_table.h"

namespace fakecuda {

using namespace moerun::cuda;  // NOLINT: the stand-in speaks the driver's ABI throughout

enum class Call : int {
#define FAKECUDA_NAME(member, symbol, ...) member,
  MOERUN_CUDA_FUNCTIONS(FAKECUDA_NAME) MOERUN_CUDA_OPTIONAL_FUNCTIONS(FAKECUDA_NAME)
#undef FAKECUDA_NAME
      kKernel,  // not a call: a kernel that runs
  kCalls,
};

const char* name_of(Call call);

class Faults {
 public:
  void reset(const std::string& rules);  // as FAKECUDA_FAIL
  void fail(const std::string& name, int64_t n, Result code);

  // Counts the call and returns what it must return: kSuccess, an injected code or the sticky one.
  Result enter(Call call);
  // As a faulting kernel leaves it: every later call returns the code. The first one stays.
  void set_sticky(Result code);
  Result sticky() const { return sticky_.load(std::memory_order_relaxed); }

  int64_t calls(const std::string& name) const;  // -1 for an unknown name
  const char* failed() const { return failed_.load(std::memory_order_relaxed); }

 private:
  struct Rule {
    int call;  // kCalls: any
    int64_t at;
    Result code;
  };
  static constexpr int kAny = static_cast<int>(Call::kCalls);
  static std::optional<int> find(const std::string& name);

  std::atomic<int64_t> counts_[kAny + 1] = {};
  std::atomic<Result> sticky_{kSuccess};
  std::atomic<const char*> failed_{nullptr};  // the call that a rule made fail last
  mutable std::shared_mutex mutex_;
  std::vector<Rule> rules_;
};

}  // namespace fakecuda
