#include "src/engine/bookkeeper.h"

#include <algorithm>
#include <chrono>

namespace moerun {
namespace {

constexpr int kNoLayer = -1;  // in the timeline: not of a layer of experts
constexpr const char* kPhaseNames[cpu::kPhases] = {"convert", "gate_up", "down"};

}  // namespace

void Bookkeeper::on_groups(const cpu::Groups& groups) {
  for (int64_t a = 0; a < groups.active(); ++a)
    layer_.stats.expert_tokens[groups.experts[a]] += groups.offsets[a + 1] - groups.offsets[a];
  layer_.stats.weight_bytes += groups.active() * layer_.expert_bytes();
}

void Bookkeeper::on_spans(const std::vector<std::array<cpu::Span, cpu::kPhases>>& by_thread, int64_t tokens) {
  auto begin = cpu::Clock::time_point::max(), end = cpu::Clock::time_point::min();
  for (size_t thread = 0; thread < by_thread.size(); ++thread)
    for (int phase = 0; phase < cpu::kPhases; ++phase) {
      const cpu::Span& span = by_thread[thread][phase];
      if (span.begin == span.end) continue;
      begin = std::min(begin, span.begin);
      end = std::max(end, span.end);
      trace_.record({.name = kPhaseNames[phase],
                     .lane = {Lane::cpu, static_cast<int>(thread)},
                     .layer = layer_.index(),
                     .tokens = tokens,
                     .begin = span.begin,
                     .end = span.end});
    }
  layer_.stats.tokens += tokens;
  if (begin < end) layer_.stats.seconds += std::chrono::duration<double>(end - begin).count();
}

void book_dense(const char* part, int64_t tokens, cpu::Span span, Trace& trace, double& dense_seconds) {
  dense_seconds += std::chrono::duration<double>(span.end - span.begin).count();
  trace.record({.name = part, .layer = kNoLayer, .tokens = tokens, .begin = span.begin, .end = span.end});
}

}  // namespace moerun
