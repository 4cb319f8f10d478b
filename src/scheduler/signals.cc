#include "src/scheduler/signals.h"

#include <atomic>

namespace moerun {

Signals::Signals(const cuda::ContextPtr& context) : memory_(context, kWords * sizeof(uint32_t)) {
  auto* const words = static_cast<uint32_t*>(memory_.data());
  free_.reserve(kWords);
  for (size_t i = 0; i < kWords; ++i) {
    words[i] = 0;
    free_.push_back(words + i);
  }
}

uint32_t* Signals::take() {
  const std::lock_guard lock(mutex_);
  if (free_.empty()) return nullptr;
  uint32_t* const word = free_.back();
  free_.pop_back();
  return word;
}

void Signals::give_back(uint32_t* word) {
  const std::lock_guard lock(mutex_);
  free_.push_back(word);
}

uint32_t Signals::value(uint32_t* word) {
  return std::atomic_ref(*word).load(std::memory_order_acquire);
}

void Signals::set(uint32_t* word, uint32_t value) {
  std::atomic_ref(*word).store(value, std::memory_order_release);
}

}  // namespace moerun
