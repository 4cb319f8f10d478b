#include "src/policy/plan.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "src/error.h"

namespace moerun::policy {

void Plan::clear() {
  cpu.clear();
  cpu_fraction.clear();
  gpu.clear();
  copy.clear();
  copy_fraction.clear();
  makespan_us = 0;
  cpu_intervals.clear();
  gpu_intervals.clear();
  copy_intervals.clear();
}

void check(const SplitRequest& request) {
  if (request.loads.size() != request.resident.size()) {
    throw InvalidArgument("split: loads has " + std::to_string(request.loads.size()) +
                          " experts, but resident has " + std::to_string(request.resident.size()) +
                          "; pass one entry per expert in both");
  }
  for (size_t e = 0; e < request.loads.size(); ++e) {
    if (request.loads[e] < 0) {
      throw InvalidArgument("split: loads[" + std::to_string(e) + "] is " + std::to_string(request.loads[e]) +
                            "; a load is a number of tokens, 0 for an expert that is not active");
    }
  }
  if (!(request.copy_price >= 0) || !std::isfinite(request.copy_price)) {
    throw InvalidArgument("split: copy_price is " + std::to_string(request.copy_price) +
                          "; it must be finite and not negative; 0 where nothing else wants PCIe");
  }
  if (!(request.share_step >= 0 && request.share_step <= 1)) {
    throw InvalidArgument("split: share_step is " + std::to_string(request.share_step) +
                          "; it is a share of an expert, 0 to 1");
  }
  if (!(request.shared_gpu_us >= 0) || !std::isfinite(request.shared_gpu_us)) {
    throw InvalidArgument(
        "split: shared_gpu_us must be finite and not negative; 0 where there are no shared experts");
  }
  check(request.cost);
}

void ActiveExperts::assign(const SplitRequest& request) {
  cached.clear();
  uncached.clear();
  const auto experts = static_cast<int32_t>(request.loads.size());
  for (int32_t id = 0; id < experts; ++id) {
    if (request.loads[id] == 0) continue;
    (request.resident[id] != 0 ? cached : uncached).push_back({request.loads[id], id});
  }
  std::sort(cached.begin(), cached.end(), [](const Expert& a, const Expert& b) {
    return a.load != b.load ? a.load > b.load : a.id < b.id;
  });
  std::sort(uncached.begin(), uncached.end(), [](const Expert& a, const Expert& b) {
    return a.load != b.load ? a.load > b.load : a.id > b.id;
  });
}

void simulate(const SplitRequest& request, SimulationScratch& scratch, Plan& plan) {
  const CostModel& cost = request.cost;
  scratch.cpu_share.assign(request.loads.size(), 0.0);
  scratch.ready_us.assign(request.loads.size(), 0.0);
  plan.cpu_intervals.clear();
  plan.gpu_intervals.clear();
  plan.copy_intervals.clear();

  double cpu_us = plan.cpu.empty() ? 0 : cost.cpu_first_us;
  double begin_us = 0;
  for (size_t i = 0; i < plan.cpu.size(); ++i) {
    const int32_t id = plan.cpu[i];
    scratch.cpu_share[id] = plan.cpu_fraction[i];
    cpu_us += plan.cpu_fraction[i] * cost.cpu_us(request.loads[id]);
    if (plan.cpu_fraction[i] < 1) cpu_us += cost.cpu_part_us;
    plan.cpu_intervals.push_back({id, begin_us, cpu_us});
    begin_us = cpu_us;
  }
  double pcie_us = 0;
  for (size_t i = 0; i < plan.copy.size(); ++i) {
    const int32_t id = plan.copy[i];
    begin_us = pcie_us;
    pcie_us += plan.copy_fraction[i] * cost.copy_us;
    plan.copy_intervals.push_back({id, begin_us, pcie_us});
    scratch.ready_us[id] = pcie_us;
  }
  double gpu_us = request.shared_gpu_us;
  for (const int32_t id : plan.gpu) {
    begin_us = std::max(gpu_us, scratch.ready_us[id]);
    gpu_us = begin_us + (1 - scratch.cpu_share[id]) * cost.gpu_us(request.loads[id]);
    if (scratch.cpu_share[id] > 0) gpu_us += cost.gpu_part_us;
    plan.gpu_intervals.push_back({id, begin_us, gpu_us});
  }
  plan.makespan_us = std::max(cpu_us, gpu_us);
}

}  // namespace moerun::policy
