// HybriMoE's scheduler (arXiv 2504.05897, section IV-B, Fig. 5): a greedy simulation of three clocks that
// commits, step by step, whichever of GPU, CPU and PCIe would finish its next expert first. Kept exactly as
// published: the baseline that `balanced` is measured against and never falls behind.
#pragma once
#include <span>

#include "src/policy/plan.h"

namespace moerun::policy {

enum class Lane : uint8_t { cpu, gpu, copy };

struct Commit {
  Lane lane;
  int32_t expert;
};

// Writes plan.cpu, cpu_fraction, gpu and copy, not the intervals, and the order of the commits if asked for;
// returns the makespan. Ties go to the GPU, then to the CPU (Fig. 5 runs D on the GPU before it copies C).
double hybrimoe(const SplitRequest& request, const ActiveExperts& active, Plan& plan,
                std::vector<Commit>* commits = nullptr);

}  // namespace moerun::policy
