#include "cpu/linear_forward.h"

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
  const auto [kernels, active] = arithmetic(kernels_, batch.x_type, layer.format);
  const Blocking blocks = blocking(cpu_info(), size_of(active));
  const Activations x =
      place_activations(batch.x, batch.x_type, batch.x_stride, batch.tokens, layer.inputs, active, x_);
  for (Buffer& b : scratch_) b.at_least(scratch_bytes(blocks, layer.inputs));
  const LinearWork work(*kernels, blocks, layer, x, batch.tokens, batch.out, team_.size());
  convert_.reset();
  multiply_.reset();
  auto body = [&](Member me) noexcept {
    if (x.copy) {
      convert_.run(me, batch.tokens, [&](int64_t t) {
        copy_row(kernels_, batch.x, batch.x_type, batch.x_stride, t, layer.inputs, active, x);
      });
      barrier_.wait(me.size);
    }
    multiply_.run(me, work.items(), [&](int64_t item) { work.run(item, scratch_[me.thread].data()); });
  };
  // A small matrix is done before a second thread would have woken up.
  if (work.items() == 1)
    body(Member{});
  else
    team_.run(body);
}

}  // namespace moerun::cpu
