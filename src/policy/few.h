// All assignments of a few experts, by enumeration: where a layer has so few active experts that their loads
// are too coarse for the chains of `balanced` (Mixtral: 8). 256 evaluations of a few nanoseconds.
#pragma once
#include "src/policy/choice.h"
#include "src/policy/makespan.h"

namespace moerun::policy {

inline constexpr int32_t kFewExperts = 8;

// Optimal (Makespan is exact) over all sets and, with allow_fraction, every split of one expert. Changes
// `choice` only if something beats `limit_us`. Requires cached.size() + uncached.size() <= kFewExperts.
void choose_among_few(const SplitRequest& request, const SortedLoads& cached, const SortedLoads& uncached,
                      double limit_us, Choice& choice);

}  // namespace moerun::policy
