// Asks the kernel to back memory with huge pages. Streaming weights from 4 KiB pages costs about a tenth of
// the read bandwidth (measured); mapped files cannot have huge pages on most kernels, memory that somebody
// allocated can.
#pragma once
#include <cstdint>

namespace moerun {

// Collapses the whole 2 MiB pages in [address, address + bytes) now, at a few GB/s, without changing what is
// in them. Returns the bytes that are huge afterwards as far as the kernel says: 0 where it refuses, which
// does no harm; and where there are several nodes, since rows of different nodes would share a page
// (node_placement.h).
int64_t use_huge_pages(const void* address, int64_t bytes);

}  // namespace moerun
