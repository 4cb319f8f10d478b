#include "cpu/topology.h"

#include <sched.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

#include "src/error.h"

namespace moerun::cpu {
namespace {

constexpr const char* kVariable = "MOERUN_NUMA_NODES";

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, separator);) parts.push_back(part);
  return parts;
}

int parse_number(std::string_view text, const std::string& whole) {
  int number = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number < 0 || number >= CPU_SETSIZE)
    throw InvalidArgument("'" + whole + "' is not a list of processors such as 0-3,8");
  return number;
}

bool contains(const std::vector<int>& ascending, int number) {
  return std::binary_search(ascending.begin(), ascending.end(), number);
}

}  // namespace

std::vector<int> parse_cpu_list(const std::string& text) {
  std::vector<int> cpus;
  for (const std::string& range : split(text, ',')) {
    const size_t dash = range.find('-');
    const int first = parse_number(std::string_view(range).substr(0, dash), text);
    const int last =
        dash == std::string::npos ? first : parse_number(std::string_view(range).substr(dash + 1), text);
    if (last < first) throw InvalidArgument("'" + text + "' is not a list of processors such as 0-3,8");
    for (int cpu = first; cpu <= last; ++cpu) cpus.push_back(cpu);
  }
  std::sort(cpus.begin(), cpus.end());
  if (cpus.empty() || std::adjacent_find(cpus.begin(), cpus.end()) != cpus.end())
    throw InvalidArgument("'" + text + "' is empty or names a processor twice");
  return cpus;
}

std::vector<int> usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof(set), &set) == 0)
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  return cpus.empty() ? std::vector<int>{0} : cpus;
}

Topology read_topology(const std::string& folder, const std::vector<int>& usable) {
  Topology topology;
  std::error_code ignored;  // no such folder: a kernel without NUMA
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.rfind("node", 0) != 0 || name.size() == 4 || !std::isdigit(static_cast<unsigned char>(name[4])))
      continue;
    Node node{.id = static_cast<int>(std::strtol(name.c_str() + 4, nullptr, 10)), .cpus = {}};
    std::ifstream in(entry.path() / "cpulist");
    std::string list;
    if (!std::getline(in, list) || list.empty()) continue;  // memory without processors
    for (const int cpu : parse_cpu_list(list))
      if (contains(usable, cpu)) node.cpus.push_back(cpu);
    if (!node.cpus.empty()) topology.nodes.push_back(std::move(node));
  }
  std::sort(topology.nodes.begin(), topology.nodes.end(),
            [](const Node& a, const Node& b) { return a.id < b.id; });
  if (topology.nodes.empty()) topology.nodes.push_back({.id = 0, .cpus = usable});
  return topology;
}

Topology parse_topology(const std::string& text, const Topology& machine) {
  Topology made_up;
  if (text == "off") {
    Node all{.id = machine.nodes.front().id, .cpus = {}};
    for (const Node& node : machine.nodes)
      all.cpus.insert(all.cpus.end(), node.cpus.begin(), node.cpus.end());
    std::sort(all.cpus.begin(), all.cpus.end());
    made_up.nodes.push_back(std::move(all));
    return made_up;
  }
  std::vector<int> named;
  for (const std::string& list : split(text, ';')) {
    Node node{.id = -1, .cpus = parse_cpu_list(list)};
    for (const Node& real : machine.nodes)
      if (contains(real.cpus, node.cpus.front())) node.id = real.id;
    for (const int cpu : node.cpus) {
      const bool usable = std::any_of(machine.nodes.begin(), machine.nodes.end(),
                                      [&](const Node& real) { return contains(real.cpus, cpu); });
      if (!usable)
        throw InvalidArgument("processor " + std::to_string(cpu) + " cannot be used by this process");
      if (std::find(named.begin(), named.end(), cpu) != named.end())
        throw InvalidArgument("processor " + std::to_string(cpu) + " is in two nodes");
      named.push_back(cpu);
    }
    made_up.nodes.push_back(std::move(node));
  }
  if (made_up.nodes.empty()) throw InvalidArgument("no node is named");
  return made_up;
}

Topology topology() {
  const Topology machine = read_topology("/sys/devices/system/node", usable_cpus());
  const char* text = std::getenv(kVariable);
  if (!text || !*text) return machine;
  try {
    return parse_topology(text, machine);
  } catch (const InvalidArgument& error) {
    throw InvalidArgument(std::string(kVariable) + "='" + text + "': " + error.what() +
                          "; give lists of usable processors, a node each, as in 0-3;4-7, or 'off'");
  }
}

}  // namespace moerun::cpu
