// A made-up batch in which each of some neighbouring experts gets the same number of tokens: what calibration
// (timing.h) runs. Owns its memory.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/moe_forward.h"

namespace moerun {

class TimedBatch {
 public:
  // `load` tokens for each of `experts`, at most `top_k` experts a token. x, and out, are of type x_type.
  TimedBatch(const cpu::KernelTable& kernels, DType x_type, int64_t hidden, int64_t top_k, int64_t experts,
             int64_t load);

  // With the experts from `first` on; behind ring - 1 comes 0. Valid until the next call.
  const cpu::Batch& of(int64_t first, int64_t ring);

  int64_t experts() const { return experts_; }
  int64_t tokens() const { return experts_ * load_; }  // of all experts together
  int64_t x_bytes() const { return static_cast<int64_t>(x_.size()); }

 private:
  const int64_t experts_, load_, top_k_;
  std::vector<std::byte> x_, out_;
  std::vector<int32_t> ids_;    // [tokens, top_k], -1 where a token has fewer
  std::vector<float> weights_;  // [tokens, top_k]
  cpu::Batch batch_;
};

}  // namespace moerun
