#include "tests/fakecuda/words.h"

#include <chrono>
#include <thread>

namespace fakecuda {
namespace {

uint32_t load(const uint32_t* word) {
  return __atomic_load_n(word, __ATOMIC_ACQUIRE);  // pairs with the host's store, and with that in write()
}

bool reached(uint32_t now, uint32_t value) {
  return static_cast<int32_t>(now - value) >= 0;
}

uint64_t number(const uint32_t* word) {
  return reinterpret_cast<uint64_t>(word);
}

}  // namespace

void Words::write(uint32_t* word, uint32_t value, const Clock& clock) {
  const std::lock_guard lock(mutex_);
  by_streams_[number(word)] = {value, clock};
  __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

bool Words::missing(const uint32_t* word, uint32_t value) const {
  const std::lock_guard lock(mutex_);
  const auto promised = promised_.find(number(word));
  return !reached(load(word), value) && (promised == promised_.end() || !reached(promised->second, value));
}

void Words::promise(const uint32_t* word, uint32_t value) {
  const std::lock_guard lock(mutex_);
  promised_[number(word)] = value;
}

bool Words::wait(const uint32_t* word, uint32_t value, const std::function<bool()>& over) {
  constexpr std::chrono::microseconds kPause(20);
  constexpr int kMostPolls = 200'000;  // 15 s or longer; polls, as a process may be stopped for a while
  for (int polls = 0; !reached(load(word), value); ++polls) {
    if (over()) return true;
    if (polls == kMostPolls) return false;
    std::this_thread::sleep_for(kPause);
  }
  return true;
}

Clock Words::written_after(const uint32_t* word, const HostClock& host) const {
  const std::lock_guard lock(mutex_);
  const auto found = by_streams_.find(number(word));
  const bool by_stream = found != by_streams_.end() && found->second.value == load(word);
  return by_stream ? found->second.clock : host.read();
}

void Words::forget(uint64_t address, int64_t bytes) {
  const std::lock_guard lock(mutex_);
  const uint64_t end = address + static_cast<uint64_t>(bytes);
  by_streams_.erase(by_streams_.lower_bound(address), by_streams_.lower_bound(end));
  promised_.erase(promised_.lower_bound(address), promised_.lower_bound(end));
}

}  // namespace fakecuda
