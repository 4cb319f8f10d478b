#include "cpu/decoder_forward.h"

#include "cpu/activations.h"

namespace moerun::cpu {
namespace {

// out = x + sum, for one row, where `sum` is rounded to `type` first, as the parts by themselves round their
// results: a layer gives the same bits either way. `memory` holds 2 n floats.
void add_row(const KernelTable& kernels, const void* x, const float* sum, void* out, DType type, int64_t n,
             float* memory) {
  float* rounded = memory + n;
  kernels.convert(x, type, memory, DType::f32, n);
  kernels.convert(sum, DType::f32, out, type, n);
  kernels.convert(out, type, rounded, DType::f32, n);
  for (int64_t i = 0; i < n; ++i) memory[i] += rounded[i];
  kernels.convert(memory, DType::f32, out, type, n);
}

}  // namespace

int64_t DecoderForward::workspace_bytes() const {
  int64_t total = 0;
  for (const Buffer* b : {&normed_, &sum_, &row_, &logits_, &weights_, &ids_}) total += b->bytes();
  return total;
}

// The rows of a batch between the parts of a layer.
struct DecoderForward::Rows {
  const KernelTable& kernels;
  int64_t count, hidden;
  DType type;
  LinearOutput normed;  // of `type`
  LinearOutput sum;     // fp32
  LinearOutput out;     // of `type`
  float* row;           // memory for two rows

  // out = x + sum
  void add_to(const void* x, int64_t x_stride) const {
    for (int64_t r = 0; r < count; ++r)
      add_row(kernels, offset(x, r * x_stride, type), static_cast<const float*>(sum.data) + r * sum.stride,
              offset(out.data, r * out.stride, type), type, hidden, row);
  }
};

DecoderForward::Rows DecoderForward::rows_of(const DecoderView& layer, const AttentionBatch& batch) {
  const int64_t count = batch.sequences * batch.tokens, hidden = layer.attention_norm.width;
  const DType type = batch.x_type;
  const int64_t stride = spread(hidden, size_of(type));
  return {.kernels = kernels_,
          .count = count,
          .hidden = hidden,
          .type = type,
          .normed = {normed_.at_least(count * stride * size_of(type)), type, stride},
          .sum = {sum_.at_least(count * hidden * sizeof(float)), DType::f32, hidden},
          .out = batch.out,
          .row = static_cast<float*>(row_.at_least(2 * hidden * sizeof(float)))};
}

void DecoderForward::attend(const DecoderView& layer, const AttentionBatch& batch) {
  const Rows rows = rows_of(layer, batch);
  if (rows.count == 0) return;
  rms_norm(kernels_, experts_.team(), layer.attention_norm,
           {.x = batch.x,
            .x_type = rows.type,
            .x_stride = batch.x_stride,
            .out = rows.normed,
            .rows = rows.count});
  AttentionBatch attended = batch;
  attended.x = rows.normed.data;
  attended.x_stride = rows.normed.stride;
  attended.out = rows.sum;
  attention_.run(layer.attention, attended);
  rows.add_to(batch.x, batch.x_stride);
}

void DecoderForward::run_experts(const DecoderView& layer, const AttentionBatch& batch, Observer& observer) {
  const Rows rows = rows_of(layer, batch);
  const int64_t experts = layer.router.gate.outputs, top_k = layer.router.top_k;
  if (rows.count == 0) return;
  rms_norm(kernels_, experts_.team(), layer.expert_norm,
           {.x = rows.out.data,
            .x_type = rows.type,
            .x_stride = rows.out.stride,
            .out = rows.normed,
            .rows = rows.count});
  const RouterBatch routed{
      .tokens = rows.count,
      .x = rows.normed.data,
      .x_type = rows.type,
      .x_stride = rows.normed.stride,
      .logits = logits_.at_least(rows.count * experts * size_of(rows.type)),
      .logits_type = rows.type,
      .weights = static_cast<float*>(weights_.at_least(rows.count * top_k * sizeof(float))),
      .ids = static_cast<int64_t*>(ids_.at_least(rows.count * top_k * sizeof(int64_t))),
  };
  router_.run(layer.router, routed);
  experts_.run(layer.experts,
               {.x = rows.normed.data,
                .x_type = rows.type,
                .x_stride = rows.normed.stride,
                .out = rows.sum.data,
                .out_type = DType::f32,
                .out_stride = rows.sum.stride,
                .routing = {.ids = routed.ids,
                            .ids_are_64_bit = true,
                            .ids_stride = top_k,
                            .weights = routed.weights,
                            .weights_type = DType::f32,
                            .weights_stride = top_k,
                            .tokens = rows.count,
                            .top_k = top_k}},
               observer);
  rows.add_to(rows.out.data, rows.out.stride);
}

}  // namespace moerun::cpu
