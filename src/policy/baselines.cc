#include "src/policy/baselines.h"

#include <algorithm>

namespace moerun::policy {
namespace {

enum class Place : uint8_t { cpu, gpu, copied };

// Active experts in the order of their ids; copied ones after the cached ones on the GPU.
template <typename PlaceOf>
void assign_each(const SplitRequest& request, Plan& plan, PlaceOf place_of) {
  plan.clear();
  for (int32_t id = 0; id < static_cast<int32_t>(request.loads.size()); ++id) {
    if (request.loads[id] == 0) continue;
    switch (place_of(id)) {
      case Place::cpu:
        plan.cpu.push_back(id);
        plan.cpu_fraction.push_back(1.0);
        break;
      case Place::gpu:
        plan.gpu.push_back(id);
        break;
      case Place::copied:
        plan.copy.push_back(id);
        break;
    }
  }
  plan.gpu.insert(plan.gpu.end(), plan.copy.begin(), plan.copy.end());
}

}  // namespace

void static_split(const SplitRequest& request, bool prefill, Plan& plan) {
  assign_each(request, plan, [&](int32_t id) {
    return request.resident[id] != 0 ? Place::gpu : prefill ? Place::copied : Place::cpu;
  });
}

void ondemand(const SplitRequest& request, Plan& plan) {
  assign_each(request, plan,
              [&](int32_t id) { return request.resident[id] != 0 ? Place::gpu : Place::copied; });
}

void layerwise(const SplitRequest& request, Plan& plan) {
  const bool on_gpu = std::all_of(request.resident.begin(), request.resident.end(),
                                  [](uint8_t resident) { return resident != 0; });
  assign_each(request, plan, [&](int32_t) { return on_gpu ? Place::gpu : Place::cpu; });
}

void cpu_only(const SplitRequest& request, Plan& plan) {
  assign_each(request, plan, [](int32_t) { return Place::cpu; });
}

void gpu_only(const ActiveExperts& active, Plan& plan) {
  plan.clear();
  for (const Expert& e : active.cached) plan.gpu.push_back(e.id);
  for (const Expert& e : active.uncached) plan.copy.push_back(e.id);
  plan.gpu.insert(plan.gpu.end(), plan.copy.begin(), plan.copy.end());
}

bool looks_like_prefill(std::span<const int32_t> loads) {
  int64_t tokens = 0, active = 0;
  for (const int32_t load : loads) {
    tokens += load;
    active += load > 0 ? 1 : 0;
  }
  return active > 0 && static_cast<double>(tokens) >= kPrefillMeanLoad * static_cast<double>(active);
}

}  // namespace moerun::policy
