// The schedulers of other systems and the two trivial ones, each in a few lines. They write plan.cpu,
// cpu_fraction, gpu and copy; split() simulates them.
#pragma once
#include "src/policy/plan.h"

namespace moerun::policy {

// kTransformers: cached experts on the GPU, the others on the CPU; in prefill the others are copied.
void static_split(const SplitRequest& request, bool prefill, Plan& plan);
// AdapMoE: everything on the GPU; cached experts first, the others copied in the order of their ids, as
// demanded.
void ondemand(const SplitRequest& request, Plan& plan);
// llama.cpp: a layer whose experts are all cached runs on the GPU, any other layer on the CPU.
void layerwise(const SplitRequest& request, Plan& plan);
// Everything on the CPU, and everything on the GPU with the copies in the best order (heaviest first).
void cpu_only(const SplitRequest& request, Plan& plan);
void gpu_only(const ActiveExperts& active, Plan& plan);

// Prefill, for static_split, when nobody says: active experts have at least this many tokens on average.
// Heuristic: 32 tokens of prompt are 2 per expert at the finest shape known (128 experts, top-8) and more at
// every other.
inline constexpr double kPrefillMeanLoad = 2.0;
bool looks_like_prefill(std::span<const int32_t> loads);

}  // namespace moerun::policy
