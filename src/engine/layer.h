// One layer of experts as the engine keeps it: its shape, where its weights lie, and what it has done so far.
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/moe_forward.h"
#include "src/types.h"

namespace moerun {

struct LayerShape {
  int64_t num_experts = 0, hidden = 0, inter = 0, top_k = 0;
  WeightFormat format = WeightFormat::f32;
  ActivationSpec activation;
  bool bias = false;
};

struct LayerStats {
  int64_t batches = 0;
  int64_t tokens = 0;
  int64_t weight_bytes = 0;            // of experts that were active, once per batch
  double seconds = 0;                  // from the first thread's start to the last one's end
  std::vector<int64_t> expert_tokens;  // [num_experts] tokens that each expert has served
};

class Layer {
 public:
  // `owner` keeps the memory behind the views alive. Throws InvalidArgument if sizes or strides are not
  // supported.
  Layer(int index, const LayerShape& shape, std::vector<ExpertView> experts, std::shared_ptr<void> owner);

  int index() const { return index_; }
  const LayerShape& shape() const { return shape_; }
  cpu::LayerView view() const;
  int64_t expert_bytes() const;  // the weights of one expert with their scales, without biases

  LayerStats stats;  // guarded by the engine

  // Batches on the device of up to so many tokens, by the type of x, need no memory that is not there
  // (HybridForward::reserve). The scheduler's thread sets it, submitting threads read it.
  std::array<std::atomic<int64_t>, 3> reserved_tokens{};

 private:
  const int index_;
  const LayerShape shape_;
  const std::vector<ExpertView> experts_;
  const std::shared_ptr<void> owner_;
};

}  // namespace moerun
