// Finds work of different streams that touches the same bytes, one of them writing, with nothing that orders
// the two: what a real device does then depends on timing. Whichever runs second finds the other one's
// trace, so a missing event is found in every run, whatever the timing was.
//
// Vector clocks (as FastTrack, PLDI 2009, with ranges of bytes instead of variables): every operation has a
// number in its stream, and knows for every stream the last operation that is ordered before it. Order comes
// from the stream itself, from events, and from the host: what the host has waited for comes before all that
// it submits later. Hosts' own threads count as one, so a race between them is left to ThreadSanitizer.
#pragma once
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

namespace fakecuda {

// Stream number -> its last operation that comes before.
using Clock = std::map<int, int64_t>;

void merge(Clock& into, const Clock& from);

struct Operation {
  std::string name;
  int stream = 0;
  int64_t number = 0;  // in its stream, from 1
  Clock before;        // includes itself
};

class HappensBefore {
 public:
  // Notes that the operation touches these bytes. Returns what is wrong with that, or an empty text.
  std::string read(const Operation& operation, uint64_t address, int64_t bytes);
  std::string write(const Operation& operation, uint64_t address, int64_t bytes);
  void forget(uint64_t address, int64_t bytes);  // the memory was freed

 private:
  struct Mark {
    int stream = 0;
    int64_t number = 0;
    std::string name;
  };
  struct Range {
    uint64_t end = 0;
    Mark writer;                  // number 0: nobody
    std::map<int, Mark> readers;  // since the write, the last of each stream
  };
  using Ranges = std::map<uint64_t, Range>;  // by begin; disjoint

  Ranges::iterator split(uint64_t at);  // the first range that begins at or behind `at`
  static std::string unordered(const Mark& earlier, const Operation& later, const char* did,
                               const char* does);

  std::mutex mutex_;
  Ranges ranges_;
};

}  // namespace fakecuda
