#include "tests/fakecuda/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <mutex>
#include <new>

namespace fakecuda {
namespace {

constexpr int64_t kSpace = int64_t{64} << 30;  // bytes of addresses, not of memory
constexpr int64_t kPage = 4096;
constexpr int64_t kGuard = 2 * kPage;  // between allocations, so that running over an end is found

uint64_t reserve() {
  void* at = mmap(nullptr, kSpace, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) throw std::bad_alloc();
  return reinterpret_cast<uint64_t>(at);
}

int64_t pages(int64_t bytes) {
  return (bytes + kPage - 1) / kPage * kPage;
}

// The entry of a map of ranges that holds `address`, or end().
std::map<uint64_t, int64_t>::const_iterator holder(const std::map<uint64_t, int64_t>& ranges,
                                                   uint64_t address) {
  auto behind = ranges.upper_bound(address);
  if (behind == ranges.begin()) return ranges.end();
  --behind;
  return address < behind->first + static_cast<uint64_t>(behind->second) ? behind : ranges.end();
}

bool inside(const std::map<uint64_t, int64_t>& ranges, uint64_t address, int64_t bytes) {
  const auto range = holder(ranges, address);
  return range != ranges.end() &&
         address + static_cast<uint64_t>(bytes) <= range->first + static_cast<uint64_t>(range->second);
}

}  // namespace

DeviceSpace::DeviceSpace() : base_(reserve()), shadow_base_(reserve()), next_(base_) {}

uint64_t DeviceSpace::find_gap(int64_t span) const {
  for (uint64_t from : {next_, base_}) {
    auto behind = allocations_.lower_bound(from);
    for (;; ++behind) {
      const uint64_t end = behind == allocations_.end() ? base_ + kSpace : behind->first;
      if (end >= from + static_cast<uint64_t>(span)) return from;
      if (behind == allocations_.end()) break;
      from = behind->first + static_cast<uint64_t>(pages(behind->second) + kGuard);
    }
  }
  return 0;
}

uint64_t DeviceSpace::allocate(int64_t bytes, int64_t limit_bytes) {
  const std::unique_lock lock(mutex_);
  if (bytes > limit_bytes - used_) return 0;
  const uint64_t address = find_gap(pages(bytes) + kGuard);
  if (address == 0) return 0;
  void* const at = reinterpret_cast<void*>(address - base_ + shadow_base_);
  if (mprotect(at, static_cast<size_t>(pages(bytes)), PROT_READ | PROT_WRITE) != 0) return 0;
  std::memset(at, 0xFF, static_cast<size_t>(pages(bytes)));
  allocations_[address] = bytes;
  next_ = address + static_cast<uint64_t>(pages(bytes) + kGuard);
  used_ += bytes;
  return address;
}

int64_t DeviceSpace::bytes_of(uint64_t address) const {
  const std::shared_lock lock(mutex_);
  const auto found = allocations_.find(address);
  return found == allocations_.end() ? 0 : found->second;
}

void DeviceSpace::release(uint64_t address) {
  const std::unique_lock lock(mutex_);
  const auto found = allocations_.find(address);
  const int64_t bytes = found->second;
  void* const at = reinterpret_cast<void*>(address - base_ + shadow_base_);
  madvise(at, static_cast<size_t>(pages(bytes)), MADV_DONTNEED);
  mprotect(at, static_cast<size_t>(pages(bytes)), PROT_NONE);
  allocations_.erase(found);
  used_ -= bytes;
}

std::byte* DeviceSpace::shadow(uint64_t address, int64_t bytes) const {
  const std::shared_lock lock(mutex_);
  if (!inside(allocations_, address, bytes)) return nullptr;
  return reinterpret_cast<std::byte*>(address - base_ + shadow_base_);
}

bool DeviceSpace::owns(uint64_t address) const {
  return address >= base_ && address < base_ + kSpace;
}

int64_t DeviceSpace::allocations() const {
  const std::shared_lock lock(mutex_);
  return static_cast<int64_t>(allocations_.size());
}

int64_t DeviceSpace::bytes() const {
  const std::shared_lock lock(mutex_);
  return used_;
}

bool HostRanges::add(uint64_t address, int64_t bytes) {
  const std::unique_lock lock(mutex_);
  const auto behind = ranges_.lower_bound(address);
  if (behind != ranges_.end() && behind->first < address + static_cast<uint64_t>(bytes)) return false;
  if (holder(ranges_, address) != ranges_.end()) return false;
  ranges_[address] = bytes;
  return true;
}

int64_t HostRanges::bytes_of(uint64_t address) const {
  const std::shared_lock lock(mutex_);
  const auto found = ranges_.find(address);
  return found == ranges_.end() ? 0 : found->second;
}

void HostRanges::remove(uint64_t address) {
  const std::unique_lock lock(mutex_);
  ranges_.erase(address);
}

bool HostRanges::covers(uint64_t address, int64_t bytes) const {
  const std::shared_lock lock(mutex_);
  return inside(ranges_, address, bytes);
}

int64_t HostRanges::count() const {
  const std::shared_lock lock(mutex_);
  return static_cast<int64_t>(ranges_.size());
}

int64_t HostRanges::bytes() const {
  const std::shared_lock lock(mutex_);
  int64_t sum = 0;
  for (const auto& [address, bytes] : ranges_) sum += bytes;
  return sum;
}

}  // namespace fakecuda
