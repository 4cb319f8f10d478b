// Which processors share a memory (NUMA nodes), as far as this process may use them. Read from sysfs and the
// affinity mask; MOERUN_NUMA_NODES makes one up. Called by the engine and doctor.
#pragma once
#include <string>
#include <vector>

namespace moerun::cpu {

struct Node {
  int id = 0;             // the kernel's number of the memory
  std::vector<int> cpus;  // usable ones, ascending
};

// Nodes with usable processors, at least one.
struct Topology {
  std::vector<Node> nodes;
};

inline Topology one_node() {
  return {{Node{.id = 0, .cpus = {0}}}};
}

// The machine's. With MOERUN_NUMA_NODES, lists of processors such as "0-3,8;4-7", a node each; "off" puts all
// into one. Throws InvalidArgument if the variable is malformed or names a processor that cannot be used, or
// one twice.
Topology topology();

// Likewise, from a folder laid out as /sys/devices/system/node. `usable` is ascending.
Topology read_topology(const std::string& folder, const std::vector<int>& usable);
Topology parse_topology(const std::string& text, const Topology& machine);

// Processors in this process's affinity mask, ascending.
std::vector<int> usable_cpus();

// "0-3,8" as the kernel writes it. Throws InvalidArgument.
std::vector<int> parse_cpu_list(const std::string& text);

}  // namespace moerun::cpu
