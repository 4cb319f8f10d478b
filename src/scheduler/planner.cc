#include "src/scheduler/planner.h"

#include <algorithm>
#include <cmath>

#include "cpu/moe_forward.h"

namespace moerun {
namespace {

// The nearest share that starts a whole step: what the CPU runs of a divided expert. "balanced" plans with
// steps; "exact" does not know them.
int32_t whole_steps(double fraction, int64_t inter) {
  if (fraction >= 1) return static_cast<int32_t>(inter);
  const double steps = std::round(fraction * static_cast<double>(inter) / cpu::kShareStep);
  const auto share = static_cast<int64_t>(steps) * cpu::kShareStep;
  return static_cast<int32_t>(share < inter ? share : inter);
}

}  // namespace

const Assignment& Planner::plan(std::span<const int32_t> loads, std::span<const uint8_t> resident,
                                int64_t inter, const policy::CostModel& cost) {
  const double step = static_cast<double>(cpu::kShareStep) / static_cast<double>(inter);
  policy::split(method_,
                {.loads = loads,
                 .resident = resident,
                 .cost = cost,
                 .allow_fraction = step < 1,
                 .copy_price = policy::kCopyPrice,
                 .share_step = std::min(step, 1.0)},
                scratch_, plan_);
  assignment_.cpu_share.assign(loads.size(), 0);
  assignment_.on_cpu = false;
  for (size_t i = 0; i < plan_.cpu.size(); ++i) {
    const int32_t share = whole_steps(plan_.cpu_fraction[i], inter);
    assignment_.cpu_share[plan_.cpu[i]] = share;
    assignment_.on_cpu |= share > 0;
  }
  assignment_.gpu.clear();
  for (const int32_t expert : plan_.gpu)
    if (assignment_.cpu_share[expert] < inter) assignment_.gpu.push_back(expert);
  // A share that was rounded down to nothing leaves an expert to the GPU, which has it in its list: only
  // divided experts have shares below 1.
  assignment_.makespan_us = plan_.makespan_us;
  return assignment_;
}

}  // namespace moerun
