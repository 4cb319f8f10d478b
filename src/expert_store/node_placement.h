// Moves the weights of experts into the memory of the nodes whose threads read them (cpu/node_split.h), page
// by page. Called when a layer is added; does nothing on one node.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/node_split.h"
#include "src/types.h"

namespace moerun {

// Bytes that belong to one node of a split.
struct NodeBytes {
  const std::byte* begin = nullptr;
  const std::byte* end = nullptr;
  int node = 0;  // of the split
};

// The rows of every matrix with their scales and zero points, by node. Matrices whose rows are not contiguous
// are left out: their pages are read by all nodes.
std::vector<NodeBytes> bytes_of_nodes(const std::vector<ExpertView>& experts, WeightFormat format,
                                      int64_t hidden, int64_t inter, const cpu::NodeSplit& split);

struct Placement {
  int64_t placed_bytes = 0;  // lie where they are read
  int64_t elsewhere_bytes =
      0;  // do not: not in memory yet (a mapped file; whoever reads them first decides),
          // shared with another process, or the system does not let us move pages
};

// Asks the kernel to move whole pages; a page that belongs to two nodes goes to the first. Never fails: where
// pages stay is a matter of speed only.
Placement place(const std::vector<NodeBytes>& bytes, const cpu::NodeSplit& split);

}  // namespace moerun
