#include "src/expert_store/node_placement.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

namespace moerun {
namespace {

constexpr int kMovePages = 2;  // MPOL_MF_MOVE of linux/mempolicy.h: pages of this process only
constexpr size_t kPagesPerCall = size_t{1} << 16;  // heuristic: 256 MiB, so that the lists stay small

// Adds what `rows` rows of `row_bytes` each at `data` belong to; `rows_of` rows of the matrix share one.
void add_rows(std::vector<NodeBytes>& to, const void* data, int64_t matrix_rows, int64_t rows_of,
              int64_t row_bytes, const cpu::NodeSplit& split) {
  const auto* base = static_cast<const std::byte*>(data);
  for (int n = 0; n < split.nodes(); ++n) {
    const auto [begin, end] = split.rows(matrix_rows, n);
    const auto at = [&](int64_t row) { return base + (row + rows_of - 1) / rows_of * row_bytes; };
    if (at(begin) < at(end)) to.push_back({at(begin), at(end), n});
  }
}

void add_matrix(std::vector<NodeBytes>& to, const MatrixView& m, WeightFormat format, int64_t rows,
                const cpu::NodeSplit& split) {
  if (m.col_stride != 1) return;
  const FormatInfo& f = info(format);
  add_rows(to, m.data, rows, 1, bytes_of(format, m.row_stride), split);
  if (m.scales) add_rows(to, m.scales, rows, f.block_rows, m.scale_stride * size_of(f.scale), split);
  if (m.zeros) add_rows(to, m.zeros, rows, 1, m.scale_stride, split);
}

}  // namespace

std::vector<NodeBytes> bytes_of_nodes(const std::vector<ExpertView>& experts, WeightFormat format,
                                      int64_t hidden, int64_t inter, const cpu::NodeSplit& split) {
  std::vector<NodeBytes> bytes;
  for (const ExpertView& e : experts) {
    add_matrix(bytes, e.gate, format, inter, split);
    add_matrix(bytes, e.up, format, inter, split);
    add_matrix(bytes, e.down, format, hidden, split);
  }
  return bytes;
}

Placement place(const std::vector<NodeBytes>& bytes, const cpu::NodeSplit& split) {
  Placement placement;
  const auto page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  std::vector<void*> pages;
  std::vector<int> wanted, found;
  const auto move = [&] {
    found.assign(pages.size(), -1);
    if (!pages.empty() &&
        syscall(SYS_move_pages, 0, pages.size(), pages.data(), wanted.data(), found.data(), kMovePages) < 0)
      found.assign(pages.size(), -1);
    for (size_t i = 0; i < pages.size(); ++i)
      (found[i] == wanted[i] ? placement.placed_bytes : placement.elsewhere_bytes) +=
          static_cast<int64_t>(page_bytes);
    pages.clear();
    wanted.clear();
  };
  for (const NodeBytes& b : bytes) {
    const auto round_up = [&](const std::byte* p) {
      return (reinterpret_cast<uintptr_t>(p) + page_bytes - 1) / page_bytes * page_bytes;
    };
    for (uintptr_t page = round_up(b.begin); page < round_up(b.end); page += page_bytes) {
      pages.push_back(reinterpret_cast<void*>(page));
      wanted.push_back(split.node(b.node).id);
      if (pages.size() == kPagesPerCall) move();
    }
  }
  move();
  return placement;
}

}  // namespace moerun
