#include "src/policy/hybrimoe.h"

#include <algorithm>
#include <limits>

namespace moerun::policy {

double hybrimoe(const SplitRequest& request, const ActiveExperts& active, Plan& plan,
                std::vector<Commit>* commits) {
  constexpr double kNever = std::numeric_limits<double>::infinity();
  const CostModel& cost = request.cost;
  plan.clear();
  double gpu_us = request.shared_gpu_us, cpu_us = 0, pcie_us = 0;

  // GQ, load descending, is the merge of the cached experts [hit, hit_end) and of those copied so far
  // [arrival, copied): PCIe takes the heaviest first, so these are in order too. CQ is uncached [copied,
  // miss_end), read from its light end by the CPU.
  const auto& hits = active.cached;
  const auto& misses = active.uncached;
  size_t hit = 0, hit_end = hits.size(), arrival = 0, copied = 0, miss_end = misses.size();

  while (hit < hit_end || arrival < miss_end) {
    const bool have_hit = hit < hit_end, have_arrival = arrival < copied, have_miss = copied < miss_end;
    const bool head_is_hit = have_hit && (!have_arrival || hits[hit].load >= misses[arrival].load);

    double gpu_end = kNever, cpu_end = kNever, pcie_end = kNever;
    if (have_hit || have_arrival) {
      const double ready_us = head_is_hit ? 0 : static_cast<double>(arrival + 1) * cost.copy_us;
      gpu_end = std::max(gpu_us, ready_us) + cost.gpu_us(head_is_hit ? hits[hit].load : misses[arrival].load);
    }
    const double cpu_start = plan.cpu.empty() ? cost.cpu_first_us : cpu_us;
    if (have_miss) {
      cpu_end = cpu_start + cost.cpu_us(misses[miss_end - 1].load);
      pcie_end = pcie_us + cost.copy_us;
    } else if (have_hit) {  // the CPU steals the lightest cached expert
      cpu_end = cpu_start + cost.cpu_us(hits[hit_end - 1].load);
    }

    Commit commit{};
    if (gpu_end <= cpu_end && gpu_end <= pcie_end) {
      commit = {Lane::gpu, head_is_hit ? hits[hit++].id : misses[arrival++].id};
      gpu_us = gpu_end;
      plan.gpu.push_back(commit.expert);
    } else if (cpu_end <= pcie_end) {
      commit = {Lane::cpu, have_miss ? misses[--miss_end].id : hits[--hit_end].id};
      cpu_us = cpu_end;
      plan.cpu.push_back(commit.expert);
      plan.cpu_fraction.push_back(1.0);
    } else {
      commit = {Lane::copy, misses[copied++].id};
      pcie_us = pcie_end;
      plan.copy.push_back(commit.expert);
    }
    if (commits != nullptr) commits->push_back(commit);
  }
  return std::max(cpu_us, gpu_us);
}

}  // namespace moerun::policy
