// Who works where on a machine with several memories (NUMA): which node each thread of a team runs on, and
// which rows of every matrix belong to which node. A node's threads multiply the node's rows, and
// src/expert_store/node_placement moves these rows into the node's memory.
//
// Rows are split in both phases: of gate and up that is the intermediate dimension, of down the outputs. So
// every row is read by one node, whole, and what crosses is activations. (Splitting down by its columns, the
// intermediate dimension too, would need partial sums, and pages shared by all nodes: a row of 768 weights is
// shorter than a page.)
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/topology.h"

namespace moerun::cpu {

class NodeSplit {
 public:
  struct Range {
    int64_t begin = 0, end = 0;
  };

  // Threads 0 .. threads - 1 are spread evenly over the processors; nodes that get none are left out.
  NodeSplit(const Topology& topology, int threads);

  int team_size() const { return static_cast<int>(node_of_thread_.size()); }
  int nodes() const { return static_cast<int>(nodes_.size()); }
  const Node& node(int n) const { return nodes_[n].node; }
  int node_of(int thread) const { return node_of_thread_[thread]; }

  // [begin, end) of the threads on node n.
  Range threads(int n) const { return nodes_[n].threads; }

  // [begin, end) of `total` rows, in proportion to the threads and in whole row blocks (kRowBlock).
  Range rows(int64_t total, int n) const;

 private:
  struct Share {
    Node node;
    Range threads;
  };
  std::vector<Share> nodes_;
  std::vector<int> node_of_thread_;
};

// The calling thread is bound to a node's processors while this lives, and then to what it was before. Does
// nothing where there is one node, or where the system refuses: it is a matter of speed only.
class BoundToNode {
 public:
  BoundToNode(const NodeSplit& split, int thread) noexcept;
  ~BoundToNode();
  BoundToNode(const BoundToNode&) = delete;
  BoundToNode& operator=(const BoundToNode&) = delete;

 private:
  bool bound_ = false;
  unsigned long before_[1024 / (8 * sizeof(unsigned long))];  // a cpu_set_t
};

}  // namespace moerun::cpu
