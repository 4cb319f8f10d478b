#include "src/policy/evict.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "src/error.h"

namespace moerun::policy {
namespace {

constexpr std::array<std::pair<std::string_view, CachePolicy>, 4> kPolicies{{{"lru", CachePolicy::lru},
                                                                             {"lfu", CachePolicy::lfu},
                                                                             {"recent", CachePolicy::recent},
                                                                             {"mrs", CachePolicy::mrs}}};

}  // namespace

CachePolicy cache_policy(std::string_view name) {
  std::string known;
  for (const auto& [known_name, policy] : kPolicies) {
    if (known_name == name) return policy;
    known += (known.empty() ? "" : ", ") + std::string(known_name);
  }
  throw InvalidArgument("cache policy \"" + std::string(name) + "\" is unknown; known: " + known);
}

std::vector<std::string_view> cache_policy_names() {
  std::vector<std::string_view> names;
  for (const auto& [name, policy] : kPolicies) names.push_back(name);
  return names;
}

CacheValues::CacheValues(const CacheOptions& options)
    : options_(options),
      mrs_(options_.num_experts, options_.top_k, options_.alpha, options_.score_top_p),
      values_(options_.num_experts, 0.0),
      last_use_(options_.num_experts, 0),
      shares_(options_.num_experts, 0.0F) {}

void CacheValues::check_size(size_t size, const char* what) const {
  if (size == values_.size()) return;
  throw InvalidArgument(std::string("CacheValues: ") + what + " has " + std::to_string(size) +
                        " entries for " + std::to_string(values_.size()) + " experts; pass one per expert");
}

void CacheValues::observe(std::span<const int32_t> loads, std::span<const float> scores) {
  check_size(loads.size(), "loads");
  ++step_;
  int64_t tokens = 0;
  for (size_t e = 0; e < loads.size(); ++e) {
    tokens += loads[e];
    if (loads[e] > 0) last_use_[e] = step_;
  }
  switch (options_.policy) {
    case CachePolicy::lru:
      std::copy(last_use_.begin(), last_use_.end(), values_.begin());
      break;
    case CachePolicy::lfu:
      for (size_t e = 0; e < loads.size(); ++e) values_[e] += loads[e];
      break;
    case CachePolicy::recent:
      for (size_t e = 0; e < loads.size(); ++e) {
        values_[e] += options_.alpha * ((loads[e] > 0 ? 1.0 : 0.0) - values_[e]);
      }
      break;
    case CachePolicy::mrs:
      if (scores.empty() && tokens > 0) {
        for (size_t e = 0; e < loads.size(); ++e)
          shares_[e] = static_cast<float>(loads[e]) / static_cast<float>(tokens);
        scores = shares_;
      }
      mrs_.update(scores);
      std::copy(mrs_.values().begin(), mrs_.values().end(), values_.begin());
      break;
  }
}

void CacheValues::start(std::span<const double> shares) {
  check_size(shares.size(), "shares");
  if (options_.policy == CachePolicy::recent)
    for (size_t e = 0; e < shares.size(); ++e) values_[e] = std::min(1.0, shares[e] * options_.top_k);
  if (options_.policy == CachePolicy::mrs) {
    mrs_.start(shares);
    std::copy(shares.begin(), shares.end(), values_.begin());
  }
}

int32_t CacheValues::victim(std::span<const uint8_t> resident, std::span<const uint8_t> pinned) const {
  check_size(resident.size(), "resident");
  check_size(pinned.size(), "pinned");
  int32_t lowest = -1;
  for (int32_t e = 0; e < static_cast<int32_t>(values_.size()); ++e) {
    if (resident[e] == 0 || pinned[e] != 0) continue;
    if (lowest < 0 || std::pair(values_[e], last_use_[e]) < std::pair(values_[lowest], last_use_[lowest]))
      lowest = e;
  }
  return lowest;
}

}  // namespace moerun::policy
