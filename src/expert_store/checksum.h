// A checksum that reads memory about as fast as it comes, for cache entries on disk. Called by
// python/bindings.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu/team.h"

namespace moerun {

// FNV-1a on 64-bit words in eight interleaved lanes, which are then folded. Each step is a bijection of the
// word, so that any change within one word changes the result; no protection against intent.
uint64_t checksum(const std::byte* data, size_t bytes);

// to[i] = checksum of `bytes` bytes at addresses[i], i < count, shared by a team.
void checksums(const uint64_t* addresses, int64_t count, size_t bytes, uint64_t* to, const cpu::Team& team);

}  // namespace moerun
