// Words of pinned memory that callers' streams wait for (StreamOrder). Each is lent to one taker at a time,
// who lets it only grow; so a wait of an earlier taker never begins again.
#pragma once
#include <cstdint>
#include <mutex>
#include <vector>

#include "cuda/handles.h"

namespace moerun {

class Signals {
 public:
  static constexpr size_t kWords = 1024;  // a page: as many batches may be under way

  // Throws GpuOutOfMemory, GpuError.
  explicit Signals(const cuda::ContextPtr& context);

  uint32_t* take();  // null: all are taken
  void give_back(uint32_t* word);

  static uint32_t value(uint32_t* word);
  // By the host: a stream that waits for the value goes on. Pairs with the device's reads.
  static void set(uint32_t* word, uint32_t value);

 private:
  cuda::PinnedMemory memory_;
  std::mutex mutex_;
  std::vector<uint32_t*> free_;
};

}  // namespace moerun
