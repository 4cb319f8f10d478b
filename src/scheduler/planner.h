// Asks the policy (src/policy/split.h, any of its methods) who runs which expert of a layer, and turns its
// plan into what the devices can execute: shares of the intermediate dimension in whole steps. The scheduler
// calls it once per layer and batch; memory is reused.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "src/policy/split.h"

namespace moerun {

struct Assignment {
  std::vector<int32_t> cpu_share;  // [E] of the intermediate dimension, from 0 on; 0: not on the CPU
  std::vector<int32_t> gpu;        // experts that the GPU runs from cpu_share on, in this order
  bool on_cpu = false;             // whether the CPU has any share
  double makespan_us = 0;          // as planned
};

class Planner {
 public:
  explicit Planner(policy::SplitMethod method) : method_(method) {}

  // loads [E]: tokens per expert. resident [E]: in the GPU's cache. Valid until the next call.
  const Assignment& plan(std::span<const int32_t> loads, std::span<const uint8_t> resident, int64_t inter,
                         const policy::CostModel& cost);
  const policy::Plan& policy_plan() const { return plan_; }
  // When the bus is done with what the plan demands.
  double copies_end_us() const {
    return plan_.copy_intervals.empty() ? 0 : plan_.copy_intervals.back().end_us;
  }
  policy::SplitMethod method() const { return method_; }

 private:
  const policy::SplitMethod method_;
  policy::SplitScratch scratch_;
  policy::Plan plan_;
  Assignment assignment_;
};

}  // namespace moerun
