// Words of memory that streams write and wait for. A wait ends when the word has reached its value, whoever
// wrote it; what comes before its end is what came before the write: of a stream, the clock of the operation;
// of the host, all that the host has waited for.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>

#include "tests/fakecuda/stream.h"

namespace fakecuda {

class Words {
 public:
  void write(uint32_t* word, uint32_t value, const Clock& clock);
  // Whether nothing that was submitted writes as much as the value, and nobody has. Values are counted so
  // that 2^32 - 1 comes before 0.
  bool missing(const uint32_t* word, uint32_t value) const;
  void promise(const uint32_t* word, uint32_t value);  // a write was submitted
  // Waits until the word has reached the value, or `over()`. False if nobody has written it for so
  // long that nobody will.
  static bool wait(const uint32_t* word, uint32_t value, const std::function<bool()>& over);
  Clock written_after(const uint32_t* word, const HostClock& host) const;
  void forget(uint64_t address, int64_t bytes);  // the memory was freed

 private:
  struct Written {
    uint32_t value = 0;
    Clock clock;
  };
  mutable std::mutex mutex_;
  std::map<uint64_t, Written> by_streams_;
  std::map<uint64_t, uint32_t> promised_;
};

}  // namespace fakecuda
