#include "cpu/linear_forward.h"

#include <algorithm>

#include "cpu/activations.h"
#include "cpu/arithmetic.h"
#include "cpu/cpu_info.h"

namespace moerun::cpu {
LinearForward::LinearForward(const KernelTable& kernels, int threads)
    : kernels_(kernels), team_(threads), convert_(threads), multiply_(threads), scratch_(threads) {}

int64_t LinearForward::workspace_bytes() const {
  int64_t total = x_.bytes();
  for (const Buffer& b : scratch_) total += b.bytes();
  return total;
}

void LinearForward::run(const LinearView& layer, const LinearBatch& batch) {
  if (batch.tokens == 0) return;
  const auto [kernels, active] = arithmetic(kernels_, batch.x_type, weight_format(layer.weights_type));
  const Blocking blocks = blocking(cpu_info(), size_of(active));
  const Activations x =
      place_activations(batch.x, batch.x_type, batch.x_stride, batch.tokens, layer.inputs, active, x_);
  for (Buffer& b : scratch_) b.at_least(scratch_bytes(blocks, layer.inputs));
  const int64_t row_bytes = layer.inputs * size_of(layer.weights_type);
  const int64_t rows = rows_per_item(layer.outputs, 1, row_bytes, team_.size());
  const int64_t items = (layer.outputs + rows - 1) / rows;
  convert_.reset();
  multiply_.reset();
  auto body = [&](Member me) noexcept {
    if (x.copy) {
      convert_.run(me, batch.tokens, [&](int64_t t) {
        copy_row(kernels_, batch.x, batch.x_type, batch.x_stride, t, layer.inputs, active, x);
      });
      barrier_.wait(me.size);
    }
    multiply_.run(me, items, [&](int64_t item) {
      kernels->linear({.matrix = &layer.matrix,
                       .bias = layer.bias,
                       .inputs = layer.inputs,
                       .begin = item * rows,
                       .end = std::min((item + 1) * rows, layer.outputs),
                       .x = x.data,
                       .x_stride = x.stride,
                       .count = batch.tokens,
                       .out = batch.out,
                       .out_type = batch.out_type,
                       .out_stride = batch.out_stride,
                       .blocking = blocks,
                       .scratch = {scratch_[me.thread].data()}});
    });
  };
  // A small matrix is done before a second thread would have woken up.
  if (items == 1)
    body(Member{});
  else
    team_.run(body);
}

}  // namespace moerun::cpu
