#include "src/policy/subset_sums.h"

#include <algorithm>
#include <string>

#include "src/error.h"

namespace moerun::policy {

SubsetSums::SubsetSums(const std::vector<int32_t>& loads) : loads_(loads) {
  for (const int32_t load : loads_) total_ += load;
  words_ = static_cast<size_t>(total_ / 64 + 1);
  const size_t n = loads_.size();
  if (static_cast<double>((n + 1) * (n + 1)) * static_cast<double>(words_) * 8 >
      static_cast<double>(kMaxTableBytes)) {
    throw InvalidArgument("split: method \"exact\" would need more than 1 GiB for " + std::to_string(n) +
                          " experts with " + std::to_string(total_) + " tokens; use \"balanced\"");
  }
  bits_.assign((n + 1) * (n + 1) * words_, 0);
  bits_[0] = 1;
  for (size_t i = 0; i < n; ++i) {
    const auto shift_words = static_cast<size_t>(loads_[i] / 64);
    const auto shift_bits = static_cast<unsigned>(loads_[i] % 64);
    for (size_t c = 0; c <= i + 1; ++c) {
      uint64_t* to = bits_.data() + ((i + 1) * (n + 1) + c) * words_;
      const uint64_t* without = row(static_cast<int32_t>(i), static_cast<int32_t>(c));
      std::copy(without, without + words_, to);
      if (c == 0) continue;
      const uint64_t* with = row(static_cast<int32_t>(i), static_cast<int32_t>(c - 1));
      for (size_t w = shift_words; w < words_; ++w) {
        to[w] |= with[w - shift_words] << shift_bits;
        if (shift_bits != 0 && w > shift_words) to[w] |= with[w - shift_words - 1] >> (64 - shift_bits);
      }
    }
  }
}

std::vector<int32_t> SubsetSums::members(int32_t prefix, int32_t count, int64_t sum) const {
  std::vector<int32_t> out;
  for (int32_t i = prefix; i > 0; --i) {
    if (reachable(i - 1, count, sum)) continue;
    out.push_back(i - 1);
    --count;
    sum -= loads_[i - 1];
  }
  std::reverse(out.begin(), out.end());
  return out;
}

}  // namespace moerun::policy
