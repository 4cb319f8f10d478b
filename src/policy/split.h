// The chooser of split methods: the one entry for the engine, the replay and the tests.
#pragma once
#include <string_view>
#include <vector>

#include "src/policy/balanced.h"
#include "src/policy/plan.h"

namespace moerun::policy {

enum class SplitMethod : uint8_t { hybrimoe, balanced, static_, ondemand, layerwise, cpu, gpu, exact };

// Throws InvalidArgument for a name that is not known, listing those that are.
SplitMethod split_method(std::string_view name);
std::vector<std::string_view> split_method_names();

// Memory that split() keeps between calls: one per thread that plans. After the first call for a number of
// experts split() allocates nothing ("exact" excepted).
struct SplitScratch {
  ActiveExperts active;
  BalancedScratch balanced;
  SimulationScratch simulation;
};

enum class Phase : uint8_t { unknown, prefill, decode };  // only "static" asks

// Throws InvalidArgument as check(request) does.
void split(SplitMethod method, const SplitRequest& request, SplitScratch& scratch, Plan& plan,
           Phase phase = Phase::unknown);

}  // namespace moerun::policy
