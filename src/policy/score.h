// MRS, "minus recent score" (HybriMoE section IV-D): how much each expert of one layer is worth keeping in
// the cache.
//   S = alpha * TopP(s) + (1 - alpha) * S
// s are the router's scores of all experts, averaged over the tokens of a step; TopP keeps the p largest and
// zeroes the rest. The cache evicts the lowest S.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace moerun::policy {

inline constexpr double kMrsAlpha = 0.5;  // of HybriMoE's released code

class MrsScore {
 public:
  // score_top_p = 0 means 2 * top_k, the paper's choice, or all experts if that is fewer. Throws
  // InvalidArgument when top_k is not within 1..num_experts, alpha not in (0, 1], or score_top_p not
  // within 1..num_experts.
  MrsScore(int32_t num_experts, int32_t top_k, double alpha = kMrsAlpha, int32_t score_top_p = 0);

  // scores: [tokens, num_experts], row-major. Throws InvalidArgument when the size is no multiple of
  // num_experts. No tokens: nothing changes.
  void update(std::span<const float> scores);

  // S as if these, [num_experts], had been the scores for long. Throws InvalidArgument on another size.
  void start(std::span<const double> scores);

  std::span<const double> values() const { return values_; }  // [num_experts]

 private:
  int32_t num_experts_;
  int32_t score_top_p_;
  double alpha_;
  std::vector<double> values_;
  std::vector<double> mean_;    // scratch: the step's averages
  std::vector<int32_t> order_;  // scratch: ids, the p with the largest averages first
};

}  // namespace moerun::policy
