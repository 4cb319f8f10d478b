// What an expert costs, by the kind of its layer: a guess, until Engine::set_cost gives what calibration has
// found; refreshed by what every batch takes (StepBooks). Used by HybridForward, on the scheduler's thread.
#pragma once
#include <compare>
#include <cstdint>
#include <map>

#include "src/policy/cost_model.h"
#include "src/types.h"

namespace moerun {

// Layers whose experts are alike share one cost model.
struct ExpertKind {
  int64_t hidden = 0, inter = 0;
  WeightFormat format = WeightFormat::f32;
  bool bias = false;
  auto operator<=>(const ExpertKind&) const = default;
};

class LayerCosts {
 public:
  // The cost model of this kind, `blob_bytes` an expert; made when first asked for, and stays where it is.
  policy::CostModel& of(const ExpertKind& kind, int64_t blob_bytes);

 private:
  std::map<ExpertKind, policy::CostModel> costs_;
};

}  // namespace moerun
