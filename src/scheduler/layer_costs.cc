#include "src/scheduler/layer_costs.h"

namespace moerun {
namespace {

// Heuristic: one modest desktop, 25 GB/s of host memory, 12 GB/s of PCIe, 400 GB/s of device memory; tokens
// become felt beyond some tens.
policy::CostModel first_guess(int64_t bytes) {
  const auto us = [&](double gb_per_s) { return static_cast<double>(bytes) / (gb_per_s * 1e3); };
  return {.cpu_first_us = 10,
          .cpu_expert_us = us(25),
          .cpu_token_us = us(25) / 16,
          .gpu_expert_us = 10 + us(400),
          .gpu_token_us = us(400) / 64,
          .copy_us = us(12)};
}

}  // namespace

policy::CostModel& LayerCosts::of(const ExpertKind& kind, int64_t blob_bytes) {
  return costs_.try_emplace(kind, first_guess(blob_bytes)).first->second;
}

}  // namespace moerun
