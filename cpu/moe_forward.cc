#include "cpu/moe_forward.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "cpu/cpu_info.h"

namespace moerun::cpu {
namespace {

constexpr int64_t kPad = 64;  // rows of activations are zero-padded to a multiple of any kernel's step
constexpr int64_t kRowsMultiple = 32;  // work items are whole panels of any instruction set

// A work item: at least kItemBytes of weights, so that the hardware prefetcher pays (heuristic: about 10 us
// at 25 GB/s), and no more items than kItemsPerThread, so that activations are reused, while nobody waits
// long at the end.
constexpr int64_t kItemBytes = 256 << 10;
constexpr int64_t kItemsPerThread = 32;

// Gate-up results of a part of a batch stay in a typical L3; more tokens are done in several parts, each of
// which reads the weights again, which is cheap when every expert has hundreds of tokens.
constexpr int64_t kPartBytes = 32 << 20;
constexpr int64_t kPartTokensMin = 512;

constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Rows of activations that lie a multiple of 1 KiB apart compete for a few sets of L1: with several tokens
// that halves the speed (measured at 4 KiB). So they are spread.
constexpr int64_t kCrowded = 1024;
bool crowded(int64_t stride, int64_t element_bytes) {
  return stride * element_bytes % kCrowded == 0;
}
int64_t spread(int64_t elements, int64_t element_bytes) {
  const int64_t stride = round_up(elements, kPad);
  return crowded(stride, element_bytes) ? stride + kPad : stride;
}

// `copies` matrices of `rows` rows (and as many experts' as that) are to be split; how many rows make an
// item?
int64_t rows_per_item(int64_t rows, int64_t copies, int64_t bytes_per_row, int threads) {
  const int64_t by_bytes = kItemBytes / bytes_per_row, by_count = rows * copies / (kItemsPerThread * threads);
  return std::min(round_up(std::max<int64_t>({by_bytes, by_count, 1}), kRowsMultiple),
                  round_up(rows, kRowsMultiple));
}

int64_t tokens_per_part(const LayerView& layer, const Batch& batch, int64_t activation_bytes) {
  const int64_t row = batch.routing.top_k * round_up(layer.inter, kPad) * activation_bytes;
  return std::max(kPartTokensMin, kPartBytes / std::max<int64_t>(row, 1));
}

template <class T>
T* offset(T* base, int64_t elements, DType type) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return static_cast<Byte*>(base) + elements * size_of(type);
}

}  // namespace

void MoeForward::Buffer::Free::operator()(void* p) const {
  std::free(p);
}

void* MoeForward::Buffer::at_least(int64_t n) {
  if (n > bytes) {
    data.reset(std::aligned_alloc(64, round_up(n, 64)));
    bytes = data ? n : 0;
    if (!data) throw std::bad_alloc();
  }
  return data.get();
}

MoeForward::MoeForward(const KernelTable& kernels, int threads)
    : kernels_(kernels),
      team_(threads),
      work_{WorkRanges(threads), WorkRanges(threads), WorkRanges(threads)},
      spans_(threads),
      scratch_(threads) {}

int64_t MoeForward::workspace_bytes() const {
  int64_t total = x_.bytes + h_.bytes + y_.bytes;
  for (const Buffer& b : scratch_) total += b.bytes;
  return total;
}

void MoeForward::run(const LayerView& layer, const Batch& batch, Observer& observer) {
  const int64_t tokens = batch.routing.tokens;
  const int64_t part = tokens_per_part(layer, batch, sizeof(float));
  for (int64_t first = 0; first < tokens; first += part) {
    const int64_t count = std::min(part, tokens - first);
    group_by_expert(kernels_, batch.routing, first, count, layer.num_experts, groups_);
    run_part(layer, batch, first, count);
    observer.on_groups(groups_);
    observer.on_spans(spans_, count);
  }
}

void MoeForward::run_part(const LayerView& layer, const Batch& batch, int64_t first, int64_t count) {
  const bool in_bf16 =
      kernels_.bf16_activations && batch.x_type == DType::bf16 && layer.weights_type == DType::bf16;
  const ExpertKernels& kernels =
      in_bf16 ? kernels_.bf16_bf16 : kernels_.f32_activations[static_cast<int>(layer.weights_type)];
  const DType active_type = in_bf16 ? DType::bf16 : DType::f32;
  const int64_t active_bytes = size_of(active_type);
  const Blocking blocks = blocking(cpu_info(), active_bytes);

  // Activations that the kernels can read where they are need no copy.
  const void* x = offset(batch.x, first * batch.x_stride, batch.x_type);
  int64_t x_stride = batch.x_stride;
  const bool copy_x = batch.x_type != active_type || layer.hidden % kPad != 0 ||
                      (count > 1 && crowded(batch.x_stride, active_bytes));
  if (copy_x) {
    x_stride = spread(layer.hidden, active_bytes);
    x = x_.at_least(count * x_stride * active_bytes);
  }
  const int64_t h_stride = spread(layer.inter, active_bytes), y_stride = round_up(layer.hidden, kPad);
  void* h = h_.at_least(groups_.pairs() * h_stride * active_bytes);
  auto* y = static_cast<float*>(y_.at_least(count * y_stride * sizeof(float)));
  for (Buffer& b : scratch_) b.at_least(scratch_bytes(blocks));

  const int64_t weight_bytes = size_of(layer.weights_type);
  const int64_t active = std::max<int64_t>(groups_.active(), 1);
  const int64_t up_rows = rows_per_item(layer.inter, active, 2 * layer.hidden * weight_bytes, team_.size());
  const int64_t up_items = (layer.inter + up_rows - 1) / up_rows;
  const int64_t down_rows = rows_per_item(layer.hidden, 1, active * layer.inter * weight_bytes, team_.size());
  const int64_t down_items = (layer.hidden + down_rows - 1) / down_rows;
  for (WorkRanges& w : work_) w.reset();
  std::fill(spans_.begin(), spans_.end(), std::array<Span, kPhases>{});

  const auto convert_token = [&](int64_t t) noexcept {
    void* to = offset(const_cast<void*>(x), t * x_stride, active_type);
    kernels_.convert(offset(batch.x, (first + t) * batch.x_stride, batch.x_type), batch.x_type, to,
                     active_type, layer.hidden);
    std::memset(offset(to, layer.hidden, active_type), 0, (x_stride - layer.hidden) * active_bytes);
  };

  const auto gate_up = [&](int64_t item, void* scratch) noexcept {
    const int64_t a = item / up_items, begin = item % up_items * up_rows, pair = groups_.offsets[a];
    kernels.gate_up({
        .expert = &layer.experts[groups_.experts[a]],
        .hidden = layer.hidden,
        .inter = layer.inter,
        .begin = begin,
        .end = std::min(begin + up_rows, layer.inter),
        .x = x,
        .x_stride = x_stride,
        .rows = &groups_.rows[pair],
        .count = groups_.offsets[a + 1] - pair,
        .h = offset(h, pair * h_stride, active_type),
        .h_stride = h_stride,
        .activation = layer.activation,
        .blocking = blocks,
        .scratch = {scratch},
    });
  };

  // One item owns columns [begin, end) of y for all tokens: no two threads add to the same sum, and the order
  // of the additions does not depend on the threads.
  const auto down = [&](int64_t item, void* scratch) noexcept {
    const int64_t begin = item * down_rows, end = std::min(begin + down_rows, layer.hidden);
    for (int64_t t = 0; t < count; ++t) std::fill(y + t * y_stride + begin, y + t * y_stride + end, 0.0f);
    for (int64_t a = 0; a < groups_.active(); ++a) {
      const int64_t pair = groups_.offsets[a];
      kernels.down({
          .expert = &layer.experts[groups_.experts[a]],
          .hidden = layer.hidden,
          .inter = layer.inter,
          .begin = begin,
          .end = end,
          .h = offset(h, pair * h_stride, active_type),
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
    void* scratch = scratch_[me.thread].data.get();
    const auto phase = [&](Phase p, int64_t items, auto&& item) {
      span[p].begin = Clock::now();
      work_[p].run(me, items, item);
      span[p].end = Clock::now();
    };
    if (copy_x) {
      phase(kConvert, count, convert_token);
      barrier_.wait(me.size);
    }
    phase(kGateUp, groups_.active() * up_items, [&](int64_t i) { gate_up(i, scratch); });
    barrier_.wait(me.size);
    phase(kDown, down_items, [&](int64_t i) { down(i, scratch); });
  });
}

}  // namespace moerun::cpu
