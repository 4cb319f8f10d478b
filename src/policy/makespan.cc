#include "src/policy/makespan.h"

#include <algorithm>
#include <cmath>

namespace moerun::policy {

Makespan::Ends Makespan::whole(const Sets& sets) const {
  const double cpu_us = cpu_sum_us(uncached_.size() - sets.copied + sets.stolen,
                                   uncached_.total() - sets.copied_tokens + sets.stolen_tokens);
  double gpu_us = shared_us_ + gpu_sum_us(cached_.size() - sets.stolen, cached_.total() - sets.stolen_tokens);
  if (sets.copied > 0) {
    gpu_us = std::max(gpu_us, cost_.copy_us) + gpu_sum_us(sets.copied, sets.copied_tokens);
    gpu_us = std::max(gpu_us, sets.copied * cost_.copy_us + cost_.gpu_us(sets.lightest_copied));
  }
  return {cpu_us, gpu_us};
}

// The better one of the two allowed shares beside the crossing, towards which the objective falls from both
// sides.
template <class Objective>
Makespan::Shared Makespan::at_steps(double crossing, Objective&& objective_us) const {
  if (!(crossing > 0 && crossing < 1)) return {0, 0};
  if (share_step_ == 0) return {crossing, objective_us(crossing)};
  const double steps = std::floor(crossing / share_step_);
  Shared best{0, 0};
  for (const double share : {steps * share_step_, (steps + 1) * share_step_}) {
    if (!(share > 0 && share < 1 - 1e-9)) continue;
    const double us = objective_us(share);
    if (best.cpu_share == 0 || us < best.objective_us) best = {share, us};
  }
  return best;
}

// With the share f, T_C = cpu + f c and T_G = max(falling + (1 - f) g, flat, tail), where the tail is the end
// of the last copied expert: pcie + last, or pcie + (1 - f) g where the split expert is copied and its rest
// is shorter than that; (1 - f) g stands for the part's own cost too.
Makespan::Shared Makespan::divide(const Sets& sets, SplitSide side, int32_t load) const {
  if (side == SplitSide::piece) return divide_piece(sets, load);
  const double c = cost_.cpu_us(load), g = cost_.gpu_us(load);
  if (c <= 0 || g <= 0) return {0, 0};
  const int64_t cpu_experts = uncached_.size() - sets.copied + sets.stolen;
  const double part_us = cost_.gpu_part_us;
  const double cpu_us =
      cost_.cpu_part_us + (cpu_experts == 0 ? cost_.cpu_first_us
                                            : cpu_sum_us(cpu_experts, uncached_.total() - sets.copied_tokens +
                                                                          sets.stolen_tokens));
  const double copied_us = gpu_sum_us(sets.copied, sets.copied_tokens);
  const bool rest_is_copied = side == SplitSide::copied;
  double falling_us = shared_us_ +
                      gpu_sum_us(cached_.size() - sets.stolen, cached_.total() - sets.stolen_tokens) +
                      copied_us - g + part_us;
  double flat_us = 0, pcie_us = 0, last_us = 0;
  if (sets.copied > 0) {
    pcie_us = sets.copied * cost_.copy_us;
    last_us = cost_.gpu_us(sets.lightest_copied);
    const double after_copy_us = cost_.copy_us + copied_us;
    if (rest_is_copied) {
      falling_us = std::max(falling_us, after_copy_us - g + part_us);
    } else {
      flat_us = after_copy_us;
    }
  }
  double tail_meets = (pcie_us + last_us - cpu_us) / c;
  if (rest_is_copied) tail_meets = std::min(tail_meets, (pcie_us + g + part_us - cpu_us) / (c + g));
  const double f = std::max({(falling_us + g - cpu_us) / (c + g), (flat_us - cpu_us) / c, tail_meets});
  return at_steps(f, [&](double share) {
    const double rest_us = (1 - share) * g,
                 last_end_us = pcie_us + (rest_is_copied ? std::min(last_us, rest_us + part_us) : last_us);
    return std::max({cpu_us + share * c, falling_us + rest_us, flat_us, last_end_us}) + price_us(sets.copied);
  });
}

// The piece is the last on PCIe and on the GPU, so that with the share f, T_C = cpu + f c and T_G is the
// latest of (1 - f) g after the whole experts and (1 - f) (x + g) after the whole copies.
Makespan::Shared Makespan::divide_piece(const Sets& sets, int32_t load) const {
  const double c = cost_.cpu_us(load), g = cost_.gpu_us(load), x = cost_.copy_us;
  if (c <= 0) return {0, 0};
  const int64_t cpu_experts = uncached_.size() - sets.copied + sets.stolen;  // with the divided one
  const double cpu_us = cpu_sum_us(cpu_experts, uncached_.total() - sets.copied_tokens + sets.stolen_tokens) -
                        c + cost_.cpu_part_us;
  const double whole_us = whole(sets).gpu_us + cost_.gpu_part_us;
  const double pcie_us = sets.copied * x + cost_.gpu_part_us;  // a part's own cost comes behind its copy
  const double f = std::max((whole_us + g - cpu_us) / (c + g), (pcie_us + x + g - cpu_us) / (c + x + g));
  return at_steps(f, [&](double share) {
    return std::max({cpu_us + share * c, whole_us + (1 - share) * g, pcie_us + (1 - share) * (x + g)}) +
           price_us(sets.copied + 1 - share);
  });
}

double Makespan::division_gain_us() const {
  const int32_t heaviest = std::max(cached_.heaviest_load(), uncached_.heaviest_load());
  const double c = cost_.cpu_us(heaviest), g = cost_.gpu_us(heaviest), piece = cost_.copy_us + g;
  return std::max(g, partial_copy_ && c + piece > 0 ? c * piece / (c + piece) : 0.0);
}

}  // namespace moerun::policy
