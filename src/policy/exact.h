// The optimum of the splitting problem (stated in balanced.h), for tests and research. Costs are affine in
// the load, so a makespan depends on an assignment only through numbers of experts and sums of loads: dynamic
// programming over these (subset_sums.h) visits every assignment that could beat the best one known, pruned
// by Lagrangian lower bounds. Optimal to a relative 1e-9, over the same freedom as `balanced`: any set
// copied, any set stolen, any order, and with allow_fraction any one expert on the GPU that hands a real
// share of itself to the CPU. Milliseconds to seconds.
#pragma once
#include "src/policy/plan.h"

namespace moerun::policy {

// Writes plan.cpu, cpu_fraction, gpu and copy (not the intervals); returns the makespan.
double exact(const SplitRequest& request, const ActiveExperts& active, Plan& plan);

}  // namespace moerun::policy
