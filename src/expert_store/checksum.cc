#include "src/expert_store/checksum.h"

#include <cstring>

#include "cpu/work_ranges.h"

namespace moerun {
namespace {

constexpr uint64_t kPrime = 0x100000001b3;  // of 64-bit FNV
constexpr uint64_t kOffset = 0xcbf29ce484222325;
constexpr int kLanes = 8;
constexpr size_t kStep = kLanes * sizeof(uint64_t);

uint64_t mix(uint64_t hash, uint64_t word) {
  return (hash ^ word) * kPrime;
}

// Multiplication moves changes up only; this brings them down again.
uint64_t fold(uint64_t hash) {
  return (hash ^ hash >> 32) * 0x9e3779b97f4a7c15;
}

}  // namespace

uint64_t checksum(const std::byte* data, size_t bytes) {
  uint64_t lanes[kLanes], words[kLanes];
  for (int j = 0; j < kLanes; ++j) lanes[j] = kOffset + j;
  size_t i = 0;
  for (; i + kStep <= bytes; i += kStep) {
    std::memcpy(words, data + i, kStep);
    for (int j = 0; j < kLanes; ++j) lanes[j] = mix(lanes[j], words[j]);
  }
  uint64_t hash = mix(kOffset, bytes);
  for (; i < bytes; ++i) hash = mix(hash, static_cast<uint64_t>(data[i]));
  for (const uint64_t lane : lanes) hash = mix(fold(hash), fold(lane));
  return fold(hash);
}

void checksums(const uint64_t* addresses, int64_t count, size_t bytes, uint64_t* to, const cpu::Team& team) {
  cpu::WorkRanges work(team.size());
  work.reset();
  team.run([&](cpu::Member me) noexcept {
    work.run(me, count,
             [&](int64_t i) { to[i] = checksum(reinterpret_cast<const std::byte*>(addresses[i]), bytes); });
  });
}

}  // namespace moerun
