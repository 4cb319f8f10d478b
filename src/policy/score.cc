#include "src/policy/score.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "src/error.h"

namespace moerun::policy {

MrsScore::MrsScore(int32_t num_experts, int32_t top_k, double alpha, int32_t score_top_p)
    : num_experts_(num_experts), score_top_p_(score_top_p), alpha_(alpha) {
  if (num_experts < 1 || top_k < 1 || top_k > num_experts) {
    throw InvalidArgument("MrsScore: top_k is " + std::to_string(top_k) + " with " +
                          std::to_string(num_experts) + " experts; it must lie within 1..num_experts");
  }
  if (!(alpha > 0 && alpha <= 1)) {
    throw InvalidArgument("MrsScore: alpha is " + std::to_string(alpha) +
                          "; it must lie in (0, 1], 0.5 is the default");
  }
  if (score_top_p_ == 0) score_top_p_ = std::min(2 * top_k, num_experts);
  if (score_top_p_ < 1 || score_top_p_ > num_experts) {
    throw InvalidArgument("MrsScore: score_top_p is " + std::to_string(score_top_p) + " with " +
                          std::to_string(num_experts) + " experts; it must lie within 1..num_experts");
  }
  values_.assign(num_experts, 0.0);
  mean_.assign(num_experts, 0.0);
  order_.assign(num_experts, 0);
}

void MrsScore::update(std::span<const float> scores) {
  const auto width = static_cast<size_t>(num_experts_);
  if (scores.size() % width != 0) {
    throw InvalidArgument("MrsScore.update: " + std::to_string(scores.size()) +
                          " scores are no whole number of rows of " + std::to_string(num_experts_) +
                          " experts");
  }
  if (scores.empty()) return;
  std::fill(mean_.begin(), mean_.end(), 0.0);
  for (size_t i = 0; i < scores.size(); ++i) mean_[i % width] += scores[i];
  for (double& m : mean_) m *= static_cast<double>(width) / static_cast<double>(scores.size());

  std::iota(order_.begin(), order_.end(), 0);
  std::nth_element(
      order_.begin(), order_.begin() + score_top_p_ - 1, order_.end(),
      [this](int32_t a, int32_t b) { return mean_[a] != mean_[b] ? mean_[a] > mean_[b] : a < b; });
  for (double& value : values_) value *= 1 - alpha_;
  for (int32_t i = 0; i < score_top_p_; ++i) values_[order_[i]] += alpha_ * mean_[order_[i]];
}

void MrsScore::start(std::span<const double> scores) {
  if (scores.size() != values_.size())
    throw InvalidArgument("MrsScore.start: " + std::to_string(scores.size()) + " scores for " +
                          std::to_string(num_experts_) + " experts; pass one per expert");
  std::copy(scores.begin(), scores.end(), values_.begin());
}

}  // namespace moerun::policy
