#include "cpu/moe_forward.h"

#include <algorithm>
#include <utility>

#include "cpu/activations.h"
#include "cpu/arithmetic.h"
#include "cpu/cpu_info.h"

namespace moerun::cpu {
namespace {

// Gate-up results of a part of a batch stay in a typical L3; more tokens are done in several parts, each of
// which reads the weights again, which is cheap when every expert has hundreds of tokens.
constexpr int64_t kPartBytes = 32 << 20;
constexpr int64_t kPartTokensMin = 512;

int64_t tokens_per_part(const LayerView& layer, const Batch& batch, int64_t activation_bytes) {
  const int64_t row = batch.routing.top_k * round_up(layer.inter, kPad) * activation_bytes;
  return std::max(kPartTokensMin, kPartBytes / std::max<int64_t>(row, 1));
}

}  // namespace

Batch Batch::tokens(int64_t first, int64_t count) const {
  Batch part = *this;
  part.x = offset(x, first * x_stride, x_type);
  part.out = offset(out, first * out_stride, out_type);
  Routing& r = part.routing;
  r.ids = static_cast<const char*>(r.ids) + first * r.ids_stride * (r.ids_are_64_bit ? 8 : 4);
  r.weights = offset(r.weights, first * r.weights_stride, r.weights_type);
  r.tokens = count;
  return part;
}

MoeForward::MoeForward(const KernelTable& kernels, NodeSplit split)
    : kernels_(kernels),
      split_(std::move(split)),
      team_(split_.team_size()),
      work_{WorkRanges(team_.size()), WorkRanges(team_.size()), WorkRanges(team_.size())},
      up_items_(split_),
      down_items_(split_),
      spans_(team_.size()),
      scratch_(team_.size()) {}

int64_t MoeForward::workspace_bytes() const {
  int64_t total = x_.bytes() + h_.bytes() + y_.bytes();
  for (const Buffer& b : scratch_) total += b.bytes();
  return total;
}

void MoeForward::run(const LayerView& layer, const Batch& batch, Observer& observer) {
  const int64_t tokens = batch.routing.tokens;
  const int64_t part = tokens_per_part(layer, batch, sizeof(float));
  for (int64_t first = 0; first < tokens; first += part) {
    const int64_t count = std::min(part, tokens - first);
    group_by_expert(kernels_, batch.routing, first, count, layer.num_experts, groups_, layer.share);
    run_part(layer, batch, first, count);
    observer.on_groups(groups_);
    observer.on_spans(spans_, count);
  }
}

void MoeForward::run_part(const LayerView& layer, const Batch& batch, int64_t first, int64_t count) {
  const auto [kernels, active_type] = arithmetic(kernels_, batch.x_type, layer.format);
  const int64_t active_bytes = size_of(active_type);
  const Blocking blocks = blocking(cpu_info(), active_bytes);
  const void* given = offset(batch.x, first * batch.x_stride, batch.x_type);
  const Activations x =
      place_activations(given, batch.x_type, batch.x_stride, count, layer.hidden, active_type, x_);
  const int64_t h_stride = spread(layer.inter, active_bytes);
  // An item reads and writes the same few columns of every token's sums: spread, or they would share sets of
  // L2 too.
  const int64_t y_stride = spread(layer.hidden, sizeof(float));
  // Every expert's pairs begin where whole vectors of all before would end.
  const auto h_row = [&](int64_t a) { return groups_.offsets[a] + a * (kMostLanes - 1); };
  void* h = h_.at_least((groups_.pairs() + groups_.active() * (kMostLanes - 1)) * h_stride * active_bytes);
  auto* y = static_cast<float*>(y_.at_least(count * y_stride * sizeof(float)));
  for (Buffer& b : scratch_) b.at_least(scratch_bytes(blocks, std::max(layer.hidden, layer.inter)));

  const int64_t hidden_bytes = bytes_of(layer.format, layer.hidden),
                inter_bytes = bytes_of(layer.format, layer.inter);
  const int64_t active = std::max<int64_t>(groups_.active(), 1);
  up_items_.cut(groups_.active(), layer.inter,
                rows_per_item(layer.inter, active, 2 * hidden_bytes, team_.size()));
  down_items_.cut(1, layer.hidden, rows_per_item(layer.hidden, 1, active * inter_bytes, team_.size()));
  for (WorkRanges& w : work_) w.reset();
  std::fill(spans_.begin(), spans_.end(), std::array<Span, kPhases>{});

  const auto convert_token = [&](int64_t t) noexcept {
    copy_row(kernels_, given, batch.x_type, batch.x_stride, t, layer.hidden, active_type, x);
  };

  const auto gate_up = [&](const RowItems::Item& item, void* scratch) noexcept {
    const int64_t a = item.matrix, pair = groups_.offsets[a];
    const int64_t inter = layer.share_of(groups_.experts[a]);
    if (item.begin >= inter) return;
    kernels->gate_up({
        .expert = &layer.experts[groups_.experts[a]],
        .hidden = layer.hidden,
        .inter = inter,
        .begin = item.begin,
        .end = std::min(item.end, inter),
        .x = x.data,
        .x_stride = x.stride,
        .rows = &groups_.rows[pair],
        .count = groups_.offsets[a + 1] - pair,
        .h = offset(h, h_row(a) * h_stride, active_type),
        .h_stride = h_stride,
        .activation = layer.activation,
        .blocking = blocks,
        .scratch = {scratch},
    });
  };

  // One item owns columns [begin, end) of y for all tokens: no two threads add to the same sum, and the order
  // of the additions does not depend on the threads.
  const auto down = [&](const RowItems::Item& item, void* scratch) noexcept {
    const auto [_, begin, end] = item;
    for (int64_t t = 0; t < count; ++t) std::fill(y + t * y_stride + begin, y + t * y_stride + end, 0.0f);
    for (int64_t a = 0; a < groups_.active(); ++a) {
      const int64_t pair = groups_.offsets[a];
      kernels->down({
          .expert = &layer.experts[groups_.experts[a]],
          .hidden = layer.hidden,
          .inter = layer.share_of(groups_.experts[a]),
          .begin = begin,
          .end = end,
          .h = offset(h, h_row(a) * h_stride, active_type),
          .h_stride = h_stride,
          .rows = &groups_.rows[pair],
          .weights = &groups_.weights[pair],
          .count = groups_.offsets[a + 1] - pair,
          .y = y,
          .y_stride = y_stride,
          .next = a + 1 < groups_.active() ? &layer.experts[groups_.experts[a + 1]] : nullptr,
          .blocking = blocks,
          .scratch = {scratch},
      });
    }
    for (int64_t t = 0; t < count; ++t)
      kernels_.convert(y + t * y_stride + begin, DType::f32,
                       offset(batch.out, (first + t) * batch.out_stride + begin, batch.out_type),
                       batch.out_type, end - begin);
  };

  team_.run([&](Member me) noexcept {
    auto& span = spans_[me.thread];
    void* scratch = scratch_[me.thread].data();
    const BoundToNode bound(split_, me.thread);
    const auto phase = [&](Phase p, auto&&... work) {
      span[p].begin = Clock::now();
      work_[p].run(me, work...);
      span[p].end = Clock::now();
    };
    if (x.copy) {
      phase(kConvert, count, convert_token);
      barrier_.wait(me.size);
    }
    phase(kGateUp, split_, up_items_, [&](const RowItems::Item& i) { gate_up(i, scratch); });
    barrier_.wait(me.size);
    phase(kDown, split_, down_items_, [&](const RowItems::Item& i) { down(i, scratch); });
  });
}

}  // namespace moerun::cpu
