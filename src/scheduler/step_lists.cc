#include "src/scheduler/step_lists.h"

#include <algorithm>
#include <cstring>

namespace moerun {
namespace {

template <class T>
void place(int64_t& at, const std::vector<T>& list) {
  at += (static_cast<int64_t>(list.size() * sizeof(T)) + 15) / 16 * 16;
}

template <class T>
void copy(std::byte* to, const std::vector<T>& list) {
  if (!list.empty()) std::memcpy(to, list.data(), list.size() * sizeof(T));
}

}  // namespace

void StepLists::clear(int64_t tokens, int64_t top_k) {
  tokens_ = tokens;
  top_k_ = top_k;
  rows_ = split_pairs_ = 0;
  launches_.clear();
  tiles_.clear();
  pair_token_.clear();
  pair_weight_.clear();
  placed_.clear();
}

void StepLists::add(const cpu::Groups& groups, std::span<const LaunchedExpert> experts,
                    const cuda::ExpertKernels::Regime& regime) {
  placed_.resize(groups.active());
  const auto first_tile = static_cast<int64_t>(tiles_.size());
  for (const LaunchedExpert& e : experts) {
    const int32_t begin = groups.offsets[e.group], count = groups.offsets[e.group + 1] - begin;
    placed_[e.group] = {static_cast<int32_t>(rows_), regime.down_split};
    for (int32_t done = 0; done < count; done += regime.tile_tokens) {
      tiles_.push_back({.slot = e.slot,
                        .first_pair = static_cast<int32_t>(pair_token_.size()) + done,
                        .pairs = std::min(regime.tile_tokens, count - done),
                        .inter_begin = e.inter_begin,
                        .inter_end = e.inter_end,
                        .first_row = static_cast<int32_t>(rows_) + done * regime.down_split});
    }
    const auto from = begin, to = begin + count;
    pair_token_.insert(pair_token_.end(), groups.rows.begin() + from, groups.rows.begin() + to);
    pair_weight_.insert(pair_weight_.end(), groups.weights.begin() + from, groups.weights.begin() + to);
    rows_ += int64_t{count} * regime.down_split;
  }
  if (regime.activate) split_pairs_ = std::max<int64_t>(split_pairs_, pairs() * regime.gate_up_split);
  launches_.push_back({&regime, first_tile, static_cast<int64_t>(tiles_.size()) - first_tile});
}

void StepLists::finish(const cpu::Groups& groups) {
  placed_.resize(groups.active());
  token_rows_.assign(tokens_ * top_k_, {});
  filled_.assign(tokens_, 0);
  for (int64_t a = 0; a < groups.active(); ++a) {
    const Placed& p = placed_[a];
    if (p.first_row < 0) continue;
    for (int32_t i = groups.offsets[a]; i < groups.offsets[a + 1]; ++i) {
      const int32_t token = groups.rows[i];
      token_rows_[token * top_k_ + filled_[token]++] = {
          p.first_row + (i - groups.offsets[a]) * p.rows_per_pair, p.rows_per_pair};
    }
  }
}

StepLists::Layout StepLists::layout() const {
  Layout l{};
  int64_t at = 0;
  place(at, tiles_);
  l.pair_token = at;
  place(at, pair_token_);
  l.pair_weight = at;
  place(at, pair_weight_);
  l.token_rows = at;
  place(at, token_rows_);
  l.bytes = at;
  return l;
}

// Every launch goes by the regime of its largest expert (ExpertKernels::choose): only those with the largest
// tiles take experts with more pairs than a tile has.
StepLists::Most StepLists::most(const cuda::ExpertKernels& kernels, int64_t experts, int64_t tokens) {
  constexpr int64_t kAlignments = int64_t{4} * 16;
  const int64_t top_k = kernels.shape().top_k, pairs = tokens * top_k;
  const int64_t largest = kernels.regimes().back().tile_tokens;
  Most m{.pairs = pairs, .rows = 0, .split_pairs = 0, .list_bytes = kAlignments};
  for (const cuda::ExpertKernels::Regime& r : kernels.regimes()) {
    const int64_t its_pairs = r.tile_tokens < largest ? std::min(pairs, experts * r.tile_tokens) : pairs;
    m.rows += its_pairs * r.down_split;
    if (r.activate) m.split_pairs = std::max(m.split_pairs, pairs * r.gate_up_split);
  }
  m.list_bytes += pairs * static_cast<int64_t>(sizeof(cuda::Tile) + sizeof(int32_t) + sizeof(float) +
                                               sizeof(cuda::PairRows));
  return m;
}

void StepLists::write(std::byte* to) const {
  const Layout l = layout();
  copy(to + l.tiles, tiles_);
  copy(to + l.pair_token, pair_token_);
  copy(to + l.pair_weight, pair_weight_);
  copy(to + l.token_rows, token_rows_);
}

}  // namespace moerun
