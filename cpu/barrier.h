// A barrier for the threads of one team inside one region. Spins for at most kSpinMicroseconds, then parks in
// the kernel. Producer and consumer of `phase_` are the team's threads; the last to arrive advances it.
#pragma once
#include <immintrin.h>

#include <atomic>
#include <chrono>
#include <cstdint>

namespace moerun::cpu {

class Barrier {
 public:
  // Every thread of the team passes the team's size.
  void wait(int threads) noexcept {
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.fetch_add(1, std::memory_order_release);
      phase_.notify_all();
      return;
    }
    const auto deadline = std::chrono::steady_clock::now() + kSpin;
    while (phase_.load(std::memory_order_acquire) == phase) {
      for (int i = 0; i < 32 && phase_.load(std::memory_order_relaxed) == phase; ++i) _mm_pause();
      if (std::chrono::steady_clock::now() > deadline) phase_.wait(phase, std::memory_order_acquire);
    }
  }

 private:
  static constexpr std::chrono::microseconds kSpin{
      50};  // a futex costs about as much; longer would waste a core
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

}  // namespace moerun::cpu
