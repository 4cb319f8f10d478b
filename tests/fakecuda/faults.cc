#include "tests/fakecuda/faults.h"

#include <mutex>
#include <sstream>

#include "cuda/driver_error.h"

namespace fakecuda {
namespace {

constexpr const char* kNames[] = {
#define FAKECUDA_NAME(member, symbol, ...) #symbol,
    MOERUN_CUDA_FUNCTIONS(FAKECUDA_NAME) MOERUN_CUDA_OPTIONAL_FUNCTIONS(FAKECUDA_NAME)
#undef FAKECUDA_NAME
        "kernel",
    "*",
};

}  // namespace

const char* name_of(Call call) {
  return kNames[static_cast<int>(call)];
}

std::optional<int> Faults::find(const std::string& name) {
  for (int i = 0; i <= kAny; ++i)
    if (name == kNames[i]) return i;
  return std::nullopt;
}

void Faults::reset(const std::string& rules) {
  for (auto& count : counts_) count.store(0, std::memory_order_relaxed);
  sticky_.store(kSuccess, std::memory_order_relaxed);
  failed_.store(nullptr, std::memory_order_relaxed);
  {
    const std::unique_lock lock(mutex_);
    rules_.clear();
  }
  std::istringstream stream(rules);
  for (std::string rule; std::getline(stream, rule, ',');) {
    const size_t first = rule.find(':'), second = rule.find(':', first + 1);
    if (second != std::string::npos)
      fail(rule.substr(0, first), std::stoll(rule.substr(first + 1)), std::stoi(rule.substr(second + 1)));
  }
}

void Faults::fail(const std::string& name, int64_t n, Result code) {
  if (const std::optional<int> call = find(name)) {
    const std::unique_lock lock(mutex_);
    rules_.push_back({*call, counts_[*call].load(std::memory_order_relaxed) + n, code});
  }
}

Result Faults::enter(Call call) {
  const int index = static_cast<int>(call);
  const bool counts_as_any = call != Call::kKernel;
  const int64_t own = 1 + counts_[index].fetch_add(1, std::memory_order_relaxed);
  const int64_t any = counts_as_any ? 1 + counts_[kAny].fetch_add(1, std::memory_order_relaxed) : 0;
  if (sticky() != kSuccess) return sticky();
  Result code = kSuccess;
  {
    const std::shared_lock lock(mutex_);
    for (const Rule& rule : rules_)
      if ((rule.call == index && rule.at == own) || (rule.call == kAny && counts_as_any && rule.at == any))
        code = rule.code;
  }
  if (code != kSuccess) failed_.store(kNames[index], std::memory_order_relaxed);
  if (is_sticky(code)) set_sticky(code);
  return code;
}

void Faults::set_sticky(Result code) {
  Result none = kSuccess;
  sticky_.compare_exchange_strong(none, code, std::memory_order_relaxed);
}

int64_t Faults::calls(const std::string& name) const {
  const std::optional<int> call = find(name);
  return call ? counts_[*call].load(std::memory_order_relaxed) : -1;
}

}  // namespace fakecuda
