// What a layer's cache keeps: one value per expert from what the layer has seen, by name of the policy, and
// the choice of a victim. The cache table asks before every copy; pinned experts (in use or in flight) are
// never chosen.
#pragma once
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "src/policy/score.h"

namespace moerun::policy {

enum class CachePolicy : uint8_t {
  lru,     // the step of the last use
  lfu,     // tokens so far
  recent,  // exponential average of being used: LFU that forgets
  mrs,     // HybriMoE's score (score.h)
};

// Throws InvalidArgument for a name that is not known, listing those that are.
CachePolicy cache_policy(std::string_view name);
std::vector<std::string_view> cache_policy_names();

// A memory of about ten steps. HybriMoE's paper names no alpha, its released code says 0.5; on traces with
// the paper's LRU hit rates, 0.1 comes out at the paper's MRS hit rates and 0.5 falls short of them
// (docs/results/hybrimoe.md).
inline constexpr double kTunedAlpha = 0.1;

struct CacheOptions {
  CachePolicy policy = CachePolicy::mrs;
  int32_t num_experts = 0;
  int32_t top_k = 0;
  double alpha = kTunedAlpha;  // of recent and mrs
  int32_t score_top_p = 0;     // mrs: 0 means 2 * top_k
};

// The values of one layer's experts. The lowest leaves first; a tie goes to the one used longer ago, then to
// the smaller id.
class CacheValues {
 public:
  explicit CacheValues(const CacheOptions& options);

  // After every step of the layer. loads: [E] tokens per expert. scores: [tokens, E] router scores; only mrs
  // reads them, and without any it counts an expert's share of the tokens as its score.
  void observe(std::span<const int32_t> loads, std::span<const float> scores);

  // Before the first step, from an earlier run: shares [E] of the tokens' choices that fell on each expert.
  // Only recent and mrs take it; they forget it within some tens of steps. The others would hold on to what
  // may be stale.
  void start(std::span<const double> shares);

  std::span<const double> values() const { return values_; }       // [E]
  std::span<const int64_t> last_use() const { return last_use_; }  // [E] step, 0 = never; for ties

  // The expert to evict among those with resident and not pinned; -1 if there is none.
  int32_t victim(std::span<const uint8_t> resident, std::span<const uint8_t> pinned) const;

 private:
  void check_size(size_t size, const char* what) const;

  CacheOptions options_;
  MrsScore mrs_;
  int64_t step_ = 0;
  std::vector<double> values_;
  std::vector<int64_t> last_use_;
  std::vector<float> shares_;  // scratch: scores made from loads
};

}  // namespace moerun::policy
