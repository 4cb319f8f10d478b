// Which sums of loads can be formed by a given number of a list's first experts, and by which. A table of
// bits for `exact`; milliseconds and megabytes, not for the hot path.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace moerun::policy {

class SubsetSums {
 public:
  // Throws InvalidArgument when the table would not fit into kMaxTableBytes.
  explicit SubsetSums(const std::vector<int32_t>& loads);

  int64_t total() const { return total_; }

  // Whether `count` of the first `prefix` loads can add up to `sum`.
  bool reachable(int32_t prefix, int32_t count, int64_t sum) const {
    return sum >= 0 && sum <= total_ && count <= prefix &&
           (row(prefix, count)[sum / 64] >> (sum % 64) & 1U) != 0;
  }
  // Positions of such loads, ascending. Only for reachable sums.
  std::vector<int32_t> members(int32_t prefix, int32_t count, int64_t sum) const;

 private:
  const uint64_t* row(int32_t prefix, int32_t count) const {
    return bits_.data() +
           (static_cast<size_t>(prefix) * (loads_.size() + 1) + static_cast<size_t>(count)) * words_;
  }

  std::vector<int32_t> loads_;
  int64_t total_ = 0;
  size_t words_ = 0;
  std::vector<uint64_t> bits_;  // [prefix][count][words]
};

inline constexpr int64_t kMaxTableBytes = int64_t{1} << 30;

}  // namespace moerun::policy
