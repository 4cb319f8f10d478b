// Splits the work items of one phase among the members of a team: each starts with a contiguous share of its
// own, so that memory is read in long runs, and who is done takes items from the front of what others have
// left. Producer: reset() before the region. Consumers: the team's threads; counters pair with each other
// only.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

#include "cpu/kernel_table.h"
#include "cpu/team.h"

namespace moerun::cpu {

// How many of `rows` rows make a work item, when `copies` matrices of as many rows each are to be split. At
// least kItemBytes, so that the hardware prefetcher pays (heuristic: about 10 us at 25 GB/s); no more items
// than kItemsPerThread, so that activations are reused while nobody waits long at the end; whole row blocks.
inline int64_t rows_per_item(int64_t rows, int64_t copies, int64_t bytes_per_row, int threads) {
  constexpr int64_t kItemBytes = 256 << 10, kItemsPerThread = 8;
  const int64_t by_bytes = kItemBytes / std::max<int64_t>(bytes_per_row, 1),
                by_count = rows * copies / (kItemsPerThread * threads);
  const int64_t wanted = std::min(std::max<int64_t>({by_bytes, by_count, 1}), rows);
  return (wanted + kRowBlock - 1) / kRowBlock * kRowBlock;
}

class WorkRanges {
 public:
  explicit WorkRanges(int threads) : threads_(threads), taken_(new Counter[threads]) {}

  void reset() noexcept {
    for (int t = 0; t < threads_; ++t) taken_[t].items.store(0, std::memory_order_relaxed);
  }

  // Calls item(i) for some of 0 <= i < count; all members together cover each i once.
  template <class Item>
  void run(Member me, int64_t count, Item&& item) noexcept {
    for (int offset = 0; offset < me.size; ++offset) {
      const int owner = (me.thread + offset) % me.size;
      const int64_t begin = count * owner / me.size, end = count * (owner + 1) / me.size;
      for (;;) {
        const int64_t i = begin + taken_[owner].items.fetch_add(1, std::memory_order_relaxed);
        if (i >= end) break;
        item(i);
      }
    }
  }

 private:
  struct alignas(64) Counter {
    std::atomic<int64_t> items{0};
  };
  int threads_;
  std::unique_ptr<Counter[]> taken_;
};

}  // namespace moerun::cpu
