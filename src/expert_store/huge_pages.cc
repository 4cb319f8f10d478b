#include "src/expert_store/huge_pages.h"

#include <sys/mman.h>

#include "cpu/topology.h"

namespace moerun {

int64_t use_huge_pages(const void* address, int64_t bytes) {
  if (cpu::topology().nodes.size() > 1) return 0;
  constexpr uintptr_t kHuge = 2 << 20;
  constexpr int kCollapse = 25;  // MADV_COLLAPSE, Linux 6.1; older headers lack it
  const auto first = reinterpret_cast<uintptr_t>(address);
  const uintptr_t begin = (first + kHuge - 1) / kHuge * kHuge, end = (first + bytes) / kHuge * kHuge;
  if (end <= begin) return 0;
  auto* from = reinterpret_cast<void*>(begin);
  madvise(from, end - begin, MADV_HUGEPAGE);  // may be refused; the next call then says so
  return madvise(from, end - begin, kCollapse) == 0 ? static_cast<int64_t>(end - begin) : 0;
}

}  // namespace moerun
