#include "src/engine/decoder_stack.h"

#include <string>

#include "src/error.h"

namespace moerun {

DecoderStack::DecoderStack(std::vector<std::shared_ptr<Layer>> experts, cpu::ModelView model)
    : experts_(std::move(experts)), view_(std::move(model)) {
  if (experts_.empty() || experts_.size() != view_.layers.size())
    throw InvalidArgument("a decoder needs layers, each with experts: got " +
                          std::to_string(view_.layers.size()) + " layers and experts for " +
                          std::to_string(experts_.size()));
  for (size_t i = 0; i < experts_.size(); ++i) view_.layers[i].experts = experts_[i]->view();
}

}  // namespace moerun
