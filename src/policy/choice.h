// An assignment as `balanced` builds it: marks on the two sorted lists, and at most one divided expert.
#pragma once
#include <cstdint>
#include <limits>
#include <vector>

#include "src/policy/makespan.h"
#include "src/policy/plan.h"

namespace moerun::policy {

struct Choice {
  std::vector<uint8_t> copied;  // beside the uncached experts; a piece is not marked
  std::vector<uint8_t> stolen;  // beside the cached experts
  SplitSide split = SplitSide::none;
  int32_t split_position = 0;                                     // in the list of that side
  double cpu_share = 1.0;                                         // of the divided expert
  double objective_us = std::numeric_limits<double>::infinity();  // the makespan and the price of the copies
};

// Fills plan.cpu (lightest first, misses before steals), cpu_fraction, gpu and copy; the copies in Johnson's
// order.
void write_plan(const CostModel& cost, const SortedLoads& cached, const SortedLoads& uncached,
                const Choice& choice, Plan& plan);

}  // namespace moerun::policy
