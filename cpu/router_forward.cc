#include "cpu/router_forward.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/activations.h"
#include "cpu/arithmetic.h"
#include "cpu/cpu_info.h"

namespace moerun::cpu {
namespace {

constexpr float kLeast = std::numeric_limits<float>::lowest();     // of what can still be chosen
constexpr float kNever = -std::numeric_limits<float>::infinity();  // what was chosen, or cannot be

void scores_of(Scoring scoring, const float* logits, int64_t n, float* scores) {
  if (scoring == Scoring::sigmoid) {
    for (int64_t e = 0; e < n; ++e) scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    return;
  }
  const float most = *std::max_element(logits, logits + n);
  float sum = 0.0f;
  for (int64_t e = 0; e < n; ++e) sum += scores[e] = std::exp(logits[e] - most);
  for (int64_t e = 0; e < n; ++e) scores[e] /= sum;
}

int64_t index_of_largest(const float* v, int64_t n) {
  return std::max_element(v, v + n) - v;
}

// What speaks for a group: its best score, or the sum of its two best.
float merit(Scoring scoring, const float* scores, int64_t n) {
  const int64_t best = index_of_largest(scores, n);
  if (scoring == Scoring::softmax || n == 1) return scores[best];
  float second = kNever;
  for (int64_t i = 0; i < n; ++i)
    if (i != best) second = std::max(second, scores[i]);
  return std::max(kLeast, scores[best] + second);
}

// Leaves the scores of the best groups, and makes all others kNever.
void keep_groups(const RouterView& layer, float* scores, float* merits) {
  const int64_t size = layer.gate.outputs / layer.groups;
  for (int64_t g = 0; g < layer.groups; ++g) merits[g] = merit(layer.scoring, scores + g * size, size);
  for (int64_t i = 0; i < layer.top_groups; ++i) merits[index_of_largest(merits, layer.groups)] = kNever;
  for (int64_t g = 0; g < layer.groups; ++g)
    if (merits[g] != kNever) std::fill_n(scores + g * size, size, kNever);
}

}  // namespace

void choose_experts(const RouterView& layer, const float* logits, float* scores, float* weights,
                    int64_t* ids) noexcept {
  const int64_t n = layer.gate.outputs;
  float* choice = scores + n;
  scores_of(layer.scoring, logits, n, scores);
  for (int64_t e = 0; e < n; ++e)  // std::max(a, b) is a if b is not a number
    choice[e] = std::max(kLeast, scores[e] + (layer.correction ? layer.correction[e] : 0.0f));
  if (layer.top_groups < layer.groups) keep_groups(layer, choice, choice + n);
  float sum = 0.0f;
  for (int64_t i = 0; i < layer.top_k; ++i) {
    ids[i] = index_of_largest(choice, n);
    choice[ids[i]] = kNever;
    sum += weights[i] = scores[ids[i]];
  }
  const float factor =
      layer.renormalise ? layer.scale / (sum + std::numeric_limits<float>::min()) : layer.scale;
  for (int64_t i = 0; i < layer.top_k; ++i) weights[i] *= factor;
}

RouterForward::RouterForward(const KernelTable& kernels, int threads)
    : kernels_(kernels),
      team_(threads),
      convert_(threads),
      multiply_(threads),
      choose_(threads),
      scratch_(threads) {}

int64_t RouterForward::workspace_bytes() const {
  int64_t total = x_.bytes();
  for (const Buffer& b : scratch_) total += b.bytes();
  return total;
}

void RouterForward::run(const RouterView& layer, const RouterBatch& batch) {
  if (batch.tokens == 0) return;
  const LinearView& gate = layer.gate;
  const auto [kernels, active] = arithmetic(kernels_, batch.x_type, gate.format);
  const Blocking blocks = blocking(cpu_info(), size_of(active));
  const Activations x =
      place_activations(batch.x, batch.x_type, batch.x_stride, batch.tokens, gate.inputs, active, x_);
  const int64_t floats = 3 * gate.outputs + layer.groups;  // one token's logits and what choose_experts needs
  for (Buffer& b : scratch_)
    b.at_least(std::max(scratch_bytes(blocks, gate.inputs), floats * int64_t{sizeof(float)}));
  const LinearWork work(*kernels, blocks, gate, x, batch.tokens,
                        {batch.logits, batch.logits_type, gate.outputs}, team_.size());
  for (WorkRanges* w : {&convert_, &multiply_, &choose_}) w->reset();

  const auto choose = [&](int64_t token, float* scratch) noexcept {
    kernels_.convert(offset(batch.logits, token * gate.outputs, batch.logits_type), batch.logits_type,
                     scratch, DType::f32, gate.outputs);
    choose_experts(layer, scratch, scratch + gate.outputs, batch.weights + token * layer.top_k,
                   batch.ids + token * layer.top_k);
  };
  auto body = [&](Member me) noexcept {
    void* scratch = scratch_[me.thread].data();
    if (x.copy) {
      convert_.run(me, batch.tokens, [&](int64_t t) {
        copy_row(kernels_, batch.x, batch.x_type, batch.x_stride, t, gate.inputs, active, x);
      });
      barrier_.wait(me.size);
    }
    multiply_.run(me, work.items(), [&](int64_t item) { work.run(item, scratch); });
    barrier_.wait(me.size);
    choose_.run(me, batch.tokens, [&](int64_t t) { choose(t, static_cast<float*>(scratch)); });
  };
  if (work.items() == 1 && batch.tokens == 1)
    body(Member{});
  else
    team_.run(body);
}

}  // namespace moerun::cpu
