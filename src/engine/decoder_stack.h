// Layers of a decoder as an engine runs them in one call: what stands around the experts, and the experts.
#pragma once
#include <memory>
#include <utility>
#include <vector>

#include "cpu/model_forward.h"
#include "src/engine/layer.h"

namespace moerun {

class DecoderStack {
 public:
  // `model.layers[i].experts` is set from experts[i]. Throws InvalidArgument if their numbers differ, or
  // there are none. Addresses in `model` must live as long.
  DecoderStack(std::vector<std::shared_ptr<Layer>> experts, cpu::ModelView model);

  const cpu::ModelView& view() const { return view_; }
  Layer& experts(int64_t layer) const { return *experts_[layer]; }

 private:
  const std::vector<std::shared_ptr<Layer>> experts_;
  cpu::ModelView view_;
};

}  // namespace moerun
