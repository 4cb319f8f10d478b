// The stand-in driver's memory: what was allocated on the device, and which host memory is pinned.
//
// The device's addresses are a reserved range that nobody may touch; the bytes lie as far behind in a second
// range, the shadow. Freed bytes can be touched in neither, and an address is used again only when the range
// has been gone through once.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <shared_mutex>

namespace fakecuda {

class DeviceSpace {
 public:
  DeviceSpace();

  uint64_t allocate(int64_t bytes, int64_t limit_bytes);  // 0 if there is not so much left
  int64_t bytes_of(uint64_t address) const;               // 0 if no allocation begins there
  void release(uint64_t address);                         // of an allocation that begins there
  // Where the bytes of [address, address + bytes) lie, or null if they are not all in one allocation.
  std::byte* shadow(uint64_t address, int64_t bytes) const;
  bool owns(uint64_t address) const;  // whether it is an address of the device at all

  int64_t allocations() const;
  int64_t bytes() const;

 private:
  uint64_t find_gap(int64_t span) const;

  mutable std::shared_mutex mutex_;
  uint64_t base_ = 0, shadow_base_ = 0;
  uint64_t next_ = 0;
  int64_t used_ = 0;
  std::map<uint64_t, int64_t> allocations_;  // address -> bytes
};

// Disjoint ranges of host memory.
class HostRanges {
 public:
  bool add(uint64_t address, int64_t bytes);  // false if it overlaps one that is there
  int64_t bytes_of(uint64_t address) const;   // 0 if none begins there
  void remove(uint64_t address);              // one that begins there
  bool covers(uint64_t address, int64_t bytes) const;
  int64_t count() const;
  int64_t bytes() const;

 private:
  mutable std::shared_mutex mutex_;
  std::map<uint64_t, int64_t> ranges_;
};

}  // namespace fakecuda
