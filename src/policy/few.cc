#include "src/policy/few.h"

#include <algorithm>
#include <array>
#include <bit>

namespace moerun::policy {
namespace {

using Tokens = std::array<int64_t, size_t{1} << kFewExperts>;

// Sums of loads of all subsets of a list; bit i of the index is position i.
void sum_subsets(const SortedLoads& loads, Tokens& tokens) {
  tokens[0] = 0;
  for (uint32_t set = 1; set < 1U << loads.size(); ++set) {
    tokens[set] = tokens[set & (set - 1)] + loads.load(std::countr_zero(set));
  }
}

void mark(uint32_t set, int32_t size, std::vector<uint8_t>& marks) {
  for (int32_t i = 0; i < size; ++i) marks[i] = set >> i & 1U;
}

}  // namespace

void choose_among_few(const SplitRequest& request, const SortedLoads& cached, const SortedLoads& uncached,
                      double limit_us, Choice& choice) {
  const Makespan makespan(request, cached, uncached);
  const double gain_us = makespan.division_gain_us();
  // A piece takes work off the CPU; every other division adds some to it.
  const int32_t heaviest_miss = uncached.heaviest_load();
  const double cpu_gain_us = request.partial_copy ? request.cost.cpu_us(heaviest_miss) : 0;
  Tokens copied_tokens, stolen_tokens;
  sum_subsets(uncached, copied_tokens);
  sum_subsets(cached, stolen_tokens);
  uint32_t best_copied = 0, best_stolen = 0;
  double best_us = limit_us;

  for (uint32_t copied = 0; copied < 1U << uncached.size(); ++copied) {
    Sets sets;
    sets.copied = std::popcount(copied);
    const double price_us = makespan.price_us(sets.copied);
    if (sets.copied * request.cost.copy_us + price_us >= best_us) continue;
    sets.copied_tokens = copied_tokens[copied];
    sets.lightest_copied = copied != 0 ? uncached.load(std::bit_width(copied) - 1) : 0;
    for (uint32_t stolen = 0; stolen < 1U << cached.size(); ++stolen) {
      sets.stolen = std::popcount(stolen);
      sets.stolen_tokens = stolen_tokens[stolen];
      const auto [cpu_us, gpu_us] = makespan.whole(sets);
      const auto keep = [&](SplitSide side, int32_t position, double share, double us) {
        best_us = choice.objective_us = us;
        best_copied = copied, best_stolen = stolen;
        choice.split = side, choice.split_position = position, choice.cpu_share = share;
      };
      const double whole_us = std::max(cpu_us, gpu_us) + price_us;
      if (whole_us < best_us) keep(SplitSide::none, 0, 1.0, whole_us);
      if (!request.allow_fraction) continue;
      if (std::max(gpu_us - gain_us, cpu_us - cpu_gain_us) + price_us >= best_us) continue;
      const auto try_to_divide = [&](SplitSide side, const SortedLoads& loads, int32_t position) {
        const auto [share, us] = makespan.divide(sets, side, loads.load(position));
        if (share > 0 && us < best_us) keep(side, position, share, us);
      };
      for (int32_t i = 0; i < cached.size(); ++i) {
        if ((stolen >> i & 1U) == 0) try_to_divide(SplitSide::cached, cached, i);
      }
      for (int32_t i = 0; i < uncached.size(); ++i) {
        const bool is_copied = (copied >> i & 1U) != 0;
        if (is_copied && !request.partial_copy) try_to_divide(SplitSide::copied, uncached, i);
        if (!is_copied && request.partial_copy) try_to_divide(SplitSide::piece, uncached, i);
      }
    }
  }
  mark(best_copied, uncached.size(), choice.copied);
  mark(best_stolen, cached.size(), choice.stolen);
}

}  // namespace moerun::policy
