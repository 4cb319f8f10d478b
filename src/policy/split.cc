#include "src/policy/split.h"

#include <array>
#include <string>
#include <utility>

#include "src/error.h"
#include "src/policy/baselines.h"
#include "src/policy/exact.h"
#include "src/policy/hybrimoe.h"

namespace moerun::policy {
namespace {

constexpr std::array<std::pair<std::string_view, SplitMethod>, 8> kMethods{
    {{"hybrimoe", SplitMethod::hybrimoe},
     {"balanced", SplitMethod::balanced},
     {"static", SplitMethod::static_},
     {"ondemand", SplitMethod::ondemand},
     {"layerwise", SplitMethod::layerwise},
     {"cpu", SplitMethod::cpu},
     {"gpu", SplitMethod::gpu},
     {"exact", SplitMethod::exact}}};

}  // namespace

SplitMethod split_method(std::string_view name) {
  std::string known;
  for (const auto& [known_name, method] : kMethods) {
    if (known_name == name) return method;
    known += (known.empty() ? "" : ", ") + std::string(known_name);
  }
  throw InvalidArgument("split: method \"" + std::string(name) + "\" is unknown; known: " + known);
}

std::vector<std::string_view> split_method_names() {
  std::vector<std::string_view> names;
  for (const auto& [name, method] : kMethods) names.push_back(name);
  return names;
}

void split(SplitMethod method, const SplitRequest& request, SplitScratch& scratch, Plan& plan, Phase phase) {
  check(request);
  scratch.active.assign(request);
  switch (method) {
    case SplitMethod::hybrimoe:
      hybrimoe(request, scratch.active, plan);
      break;
    case SplitMethod::balanced:
      balanced(request, scratch.active, scratch.balanced, plan);
      break;
    case SplitMethod::static_:
      static_split(request,
                   phase == Phase::unknown ? looks_like_prefill(request.loads) : phase == Phase::prefill,
                   plan);
      break;
    case SplitMethod::ondemand:
      ondemand(request, plan);
      break;
    case SplitMethod::layerwise:
      layerwise(request, plan);
      break;
    case SplitMethod::cpu:
      cpu_only(request, plan);
      break;
    case SplitMethod::gpu:
      gpu_only(scratch.active, plan);
      break;
    case SplitMethod::exact:
      exact(request, scratch.active, plan);
      break;
  }
  plan.copy_fraction.resize(plan.copy.size(), 1.0);  // only a method that copies a part has set it
  simulate(request, scratch.simulation, plan);
}

}  // namespace moerun::policy
