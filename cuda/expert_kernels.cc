#include "cuda/expert_kernels.h"

#include <algorithm>

#include "src/error.h"

namespace moerun::cuda {
namespace {

constexpr int64_t kMaxGridY = 65535;  // the driver's limit

unsigned ceil_div(int64_t n, int64_t d) {
  return static_cast<unsigned>((n + d - 1) / d);
}

Kernel load(const ContextPtr& context, const CompiledKernel& k) {
  if (k.tile_rows < 1 || k.split < 1)
    throw InvalidArgument("kernel " + k.function + " says it computes no rows; the kernel cache is damaged");
  return Kernel(std::make_shared<const Module>(context, k.image),
                {.name = k.function,
                 .threads = static_cast<unsigned>(32 * k.num_warps),
                 .shared_bytes = static_cast<unsigned>(k.shared_bytes),
                 .parameter_bytes = k.parameter_bytes});
}

}  // namespace

ExpertKernels::ExpertKernels(const ContextPtr& context, const CompiledKernels& compiled)
    : shape_(compiled),
      multiprocessors_(context->device().multiprocessors),
      combine_(load(context, compiled.combine)) {
  if (compiled.regimes.empty()) throw InvalidArgument("a layer's kernels need at least one regime");
  for (const CompiledRegime& r : compiled.regimes) {
    if (r.tile_tokens < 1 || (r.gate_up.split > 1) != r.activate.has_value())
      throw InvalidArgument(
          "a regime needs tiles of tokens, and an activation kernel where gate_up is split");
    regimes_.push_back({.tile_tokens = r.tile_tokens,
                        .gate_up_rows = r.gate_up.tile_rows,
                        .down_rows = r.down.tile_rows,
                        .gate_up_split = r.gate_up.split,
                        .down_split = r.down.split,
                        .gate_up = load(context, r.gate_up),
                        .down = load(context, r.down),
                        .activate = std::nullopt});
    if (r.activate) regimes_.back().activate.emplace(load(context, *r.activate));
  }
  shape_.combine.image.clear();
  for (CompiledRegime& r : shape_.regimes) {
    r.gate_up.image.clear();
    r.down.image.clear();
    if (r.activate) r.activate->image.clear();
  }
}

const ExpertKernels::Regime& ExpertKernels::choose(std::span<const int32_t> loads) const {
  const int32_t largest = loads.empty() ? 0 : *std::max_element(loads.begin(), loads.end());
  size_t chosen = 0;
  while (chosen + 1 < regimes_.size() && regimes_[chosen].tile_tokens < largest) ++chosen;
  // Of two with equal tiles the first has no split.
  while (chosen > 0 && regimes_[chosen - 1].tile_tokens == regimes_[chosen].tile_tokens) --chosen;
  const Regime& whole = regimes_[chosen];
  int64_t tiles = 0;
  for (const int32_t n : loads) tiles += ceil_div(n, whole.tile_tokens);
  const int64_t programs = tiles * ceil_div(shape_.inter, whole.gate_up_rows);
  const bool has_split =
      chosen + 1 < regimes_.size() && regimes_[chosen + 1].tile_tokens == whole.tile_tokens;
  return has_split && programs < multiprocessors_ ? regimes_[chosen + 1] : whole;
}

void ExpertKernels::launch(const StreamView& stream, const Regime& regime, const Addresses& at,
                           int64_t tiles) const {
  for (int64_t first = 0; first < tiles; first += kMaxGridY) {
    const auto count = static_cast<unsigned>(std::min(kMaxGridY, tiles - first));
    const DevicePtr list = at.tiles + first * sizeof(Tile);
    const unsigned up = ceil_div(shape_.inter, regime.gate_up_rows);
    const DevicePtr up_out = regime.activate ? at.partial : at.h;
    regime.gate_up.launch(stream, {up, count, static_cast<unsigned>(regime.gate_up_split)}, at.x, at.slab,
                          up_out, list, at.pair_token);
    if (regime.activate) regime.activate->launch(stream, {up, count, 1}, at.partial, at.slab, at.h, list);
    regime.down.launch(
        stream, {ceil_div(shape_.hidden, regime.down_rows), count, static_cast<unsigned>(regime.down_split)},
        at.h, at.slab, at.y, list, at.pair_weight);
  }
}

void ExpertKernels::combine(const StreamView& stream, DevicePtr y, DevicePtr token_rows, DevicePtr cpu,
                            DevicePtr out, int64_t tokens) const {
  for (int64_t first = 0; first < tokens; first += kMaxGridY) {
    const auto count = static_cast<unsigned>(std::min(kMaxGridY, tokens - first));
    const int32_t has_cpu = cpu != 0;
    combine_.launch(stream, {ceil_div(shape_.hidden, shape_.combine.tile_rows), count, 1}, y,
                    token_rows + first * shape_.top_k * sizeof(PairRows),
                    cpu ? cpu + first * shape_.hidden * sizeof(float) : cpu,
                    out + first * shape_.hidden * size_of(shape_.x_type), has_cpu);
  }
}

}  // namespace moerun::cuda
