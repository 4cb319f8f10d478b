// The work items of a phase: pieces of rows of some matrices of the same shape, none of which crosses from
// one node's rows to another's. Used by moe_forward.cc, which cuts before a region; the team's threads read.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/node_split.h"

namespace moerun::cpu {

class RowItems {
 public:
  struct Item {
    int64_t matrix = 0;
    int64_t begin = 0, end = 0;  // rows of it
  };

  explicit RowItems(const NodeSplit& split)
      : split_(split), nodes_(split.nodes()), first_(split.nodes() + 1) {}

  // `matrices` matrices of `rows` rows, in pieces of `piece` rows.
  void cut(int64_t matrices, int64_t rows, int64_t piece) {
    piece_ = piece;
    for (int n = 0; n < split_.nodes(); ++n) {
      const NodeSplit::Range range = split_.rows(rows, n);
      nodes_[n] = {range, (range.end - range.begin + piece - 1) / piece};
      first_[n + 1] = first_[n] + matrices * nodes_[n].pieces;
    }
  }

  // Items of node n.
  NodeSplit::Range of_node(int n) const { return {first_[n], first_[n + 1]}; }

  // Neighbouring items are neighbours in memory, as far as they can.
  Item at(int64_t i) const {
    int n = 0;
    while (i >= first_[n + 1]) ++n;
    const Node& node = nodes_[n];
    const int64_t matrix = (i - first_[n]) / node.pieces, piece = (i - first_[n]) % node.pieces;
    const int64_t begin = node.rows.begin + piece * piece_;
    return {matrix, begin, std::min(begin + piece_, node.rows.end)};
  }

 private:
  struct Node {
    NodeSplit::Range rows;
    int64_t pieces = 0;
  };
  const NodeSplit& split_;
  int64_t piece_ = 1;
  std::vector<Node> nodes_;
  std::vector<int64_t> first_;  // [nodes + 1], first_[0] is 0
};

}  // namespace moerun::cpu
