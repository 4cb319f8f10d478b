#include "src/policy/choice.h"

namespace moerun::policy {

void write_plan(const CostModel& cost, const SortedLoads& cached, const SortedLoads& uncached,
                const Choice& choice, Plan& plan) {
  plan.clear();
  const auto on_cpu = [&plan](int32_t id, double share) {
    plan.cpu.push_back(id);
    plan.cpu_fraction.push_back(share);
  };
  const int32_t piece = choice.split == SplitSide::piece ? choice.split_position : -1;
  for (int32_t i = uncached.size() - 1; i >= 0; --i) {
    if (choice.copied[i] == 0 && i != piece) on_cpu(uncached.id(i), 1.0);
  }
  for (int32_t i = cached.size() - 1; i >= 0; --i) {
    if (choice.stolen[i] != 0) on_cpu(cached.id(i), 1.0);
  }
  for (int32_t i = 0; i < cached.size(); ++i) {
    if (choice.stolen[i] == 0) plan.gpu.push_back(cached.id(i));
  }

  // The list is in Johnson's order but for the rest of a divided expert, which moves back to where its time
  // belongs.
  const int32_t moved = choice.split == SplitSide::copied ? choice.split_position : -1;
  const double rest_us =
      moved < 0 ? 0 : (1 - choice.cpu_share) * cost.gpu_us(uncached.load(moved)) + cost.gpu_part_us;
  bool placed = moved < 0;
  for (int32_t i = 0; i < uncached.size(); ++i) {
    if (choice.copied[i] == 0 || i == moved) continue;
    if (!placed && i > moved && cost.gpu_us(uncached.load(i)) < rest_us) {
      plan.copy.push_back(uncached.id(moved));
      placed = true;
    }
    plan.copy.push_back(uncached.id(i));
  }
  if (!placed) plan.copy.push_back(uncached.id(moved));
  plan.copy_fraction.assign(plan.copy.size(), 1.0);
  if (piece >= 0) {
    plan.copy.push_back(uncached.id(piece));
    plan.copy_fraction.push_back(1 - choice.cpu_share);
  }
  plan.gpu.insert(plan.gpu.end(), plan.copy.begin(), plan.copy.end());

  if (choice.split == SplitSide::cached) on_cpu(cached.id(choice.split_position), choice.cpu_share);
  if (choice.split == SplitSide::copied) on_cpu(uncached.id(moved), choice.cpu_share);
  if (piece >= 0) on_cpu(uncached.id(piece), choice.cpu_share);
}

}  // namespace moerun::policy
