#include "cpu/node_split.h"

#include <sched.h>

#include <algorithm>

#include "cpu/kernel_table.h"
#include "src/error.h"

namespace moerun::cpu {

NodeSplit::NodeSplit(const Topology& topology, int threads) {
  if (threads < 1) throw InvalidArgument("cpu_threads must be at least 1, got " + std::to_string(threads));
  int64_t cpus = 0, before = 0;
  for (const Node& node : topology.nodes) cpus += static_cast<int64_t>(node.cpus.size());
  for (const Node& node : topology.nodes) {
    const int64_t begin = (before * threads + cpus - 1) / cpus;
    before += static_cast<int64_t>(node.cpus.size());
    const int64_t end = (before * threads + cpus - 1) / cpus;
    if (begin == end) continue;
    nodes_.push_back({node, {begin, end}});
    node_of_thread_.insert(node_of_thread_.end(), end - begin, nodes() - 1);
  }
}

NodeSplit::Range NodeSplit::rows(int64_t total, int n) const {
  const int64_t threads = team_size();
  const int64_t blocks = (total + kRowBlock - 1) / kRowBlock;
  const auto from = [&](int64_t thread) { return std::min(blocks * thread / threads * kRowBlock, total); };
  return {from(nodes_[n].threads.begin), from(nodes_[n].threads.end)};
}

BoundToNode::BoundToNode(const NodeSplit& split, int thread) noexcept {
  static_assert(sizeof(before_) == sizeof(cpu_set_t));
  if (split.nodes() == 1) return;
  auto* before = reinterpret_cast<cpu_set_t*>(before_);
  if (sched_getaffinity(0, sizeof(cpu_set_t), before) != 0) return;
  cpu_set_t wanted;
  CPU_ZERO(&wanted);
  for (const int cpu : split.node(split.node_of(thread)).cpus) CPU_SET(cpu, &wanted);
  bound_ = sched_setaffinity(0, sizeof(wanted), &wanted) == 0;
}

BoundToNode::~BoundToNode() {
  if (bound_) sched_setaffinity(0, sizeof(cpu_set_t), reinterpret_cast<const cpu_set_t*>(before_));
}

}  // namespace moerun::cpu
