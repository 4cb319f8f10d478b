#include "cpu/model_forward.h"

#include "cpu/activations.h"

namespace moerun::cpu {

int64_t ModelForward::workspace_bytes() const {
  return states_[0].bytes() + states_[1].bytes() + normed_.bytes();
}

void ModelForward::run(const ModelView& model, const ModelBatch& batch, ModelObserver& observer) {
  AttentionBatch step = batch.shared;
  const int64_t rows = step.sequences * step.tokens;
  if (rows == 0) return;
  const int64_t hidden = model.layers[0].attention_norm.width, stride = spread(hidden, size_of(step.x_type));
  for (size_t i = 0; i < model.layers.size(); ++i) {
    const DecoderView& layer = model.layers[i];
    step.cache = batch.caches[i];
    step.out = {states_[i % 2].at_least(rows * stride * size_of(step.x_type)), step.x_type, stride};
    const auto begin = Clock::now();
    decoder_.attend(layer, step);
    observer.on_dense("attention", rows, {begin, Clock::now()});
    decoder_.run_experts(layer, step, observer.experts_of(static_cast<int64_t>(i)));
    observer.on_layer(static_cast<int64_t>(i));
    step.x = step.out.data;
    step.x_stride = step.out.stride;
  }
  const auto begin = Clock::now();
  finish(model, batch, step.out);
  observer.on_dense(model.head.outputs ? "head" : "norm", batch.kept * step.sequences, {begin, Clock::now()});
}

// `states` [sequences * tokens, hidden]
void ModelForward::finish(const ModelView& model, const ModelBatch& batch, const LinearOutput& states) {
  const AttentionBatch& shared = batch.shared;
  const int64_t kept = batch.kept, hidden = model.layers[0].attention_norm.width;
  LinearOutput to = batch.out;
  if (model.head.outputs)
    to = {normed_.at_least(shared.sequences * kept * states.stride * size_of(states.type)), states.type,
          states.stride};
  for (int64_t s = 0; s < shared.sequences; ++s) {
    const int64_t first = (s + 1) * shared.tokens - kept;
    const void* from = offset(states.data, first * states.stride, states.type);
    void* here = offset(to.data, s * kept * to.stride, to.type);
    if (model.norm.width) {
      rms_norm(kernels_, team_, model.norm,
               {.x = from,
                .x_type = states.type,
                .x_stride = states.stride,
                .out = {here, to.type, to.stride},
                .rows = kept});
      continue;
    }
    for (int64_t row = 0; row < kept; ++row)
      kernels_.convert(offset(from, row * states.stride, states.type), states.type,
                       offset(here, row * to.stride, to.type), to.type, hidden);
  }
  if (model.head.outputs)
    linear_.run(model.head, {.x = to.data,
                             .x_type = to.type,
                             .x_stride = to.stride,
                             .out = batch.out,
                             .tokens = shared.sequences * kept});
}

}  // namespace moerun::cpu
