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
#include "cpu/node_split.h"
#include "cpu/row_items.h"
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
      take(owner, count * owner / me.size, count * (owner + 1) / me.size, item);
    }
  }

  // Likewise for items that belong to nodes: each node's threads share those of their own, before they help
  // others. The team may be smaller than the split says.
  template <class Item>
  void run(Member me, const NodeSplit& split, const RowItems& items, Item&& item) noexcept {
    const int node = split.node_of(me.thread);
    for (const bool own : {true, false})
      for (int offset = 0; offset < threads_; ++offset) {
        const int owner = (me.thread + offset) % threads_, n = split.node_of(owner);
        if ((n == node) != own) continue;
        const auto [first, end] = items.of_node(n);
        const auto [first_thread, end_thread] = split.threads(n);
        const int64_t place = owner - first_thread, threads = end_thread - first_thread;
        take(owner, first + (end - first) * place / threads, first + (end - first) * (place + 1) / threads,
             [&](int64_t i) { item(items.at(i)); });
      }
  }

 private:
  template <class Item>
  void take(int owner, int64_t begin, int64_t end, Item&& item) noexcept {
    for (;;) {
      const int64_t i = begin + taken_[owner].items.fetch_add(1, std::memory_order_relaxed);
      if (i >= end) break;
      item(i);
    }
  }

  struct alignas(64) Counter {
    std::atomic<int64_t> items{0};
  };
  int threads_;
  std::unique_ptr<Counter[]> taken_;
};

}  // namespace moerun::cpu
