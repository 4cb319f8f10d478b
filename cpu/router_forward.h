// The router of a layer on the CPU: logits of all experts, and each token's choice, in one region of the
// team. Called by src/engine for models whose router is one of those below; moerun.routing has the same in
// numpy.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/barrier.h"
#include "cpu/buffer.h"
#include "cpu/kernel_table.h"
#include "cpu/linear_work.h"
#include "cpu/team.h"
#include "cpu/work_ranges.h"

namespace moerun::cpu {

enum class Scoring : uint8_t { softmax, sigmoid };

// score = softmax or sigmoid of the logits; the top_k with the largest score + correction are chosen, among
// the `top_groups` groups of experts whose best (softmax) or two best (sigmoid) are largest. A weight is
// scale * score, over the sum of the chosen scores if renormalised.
struct RouterView {
  LinearView gate;  // [num_experts, hidden]
  int64_t top_k = 1;
  Scoring scoring = Scoring::softmax;
  bool renormalise = false;
  float scale = 1.0f;
  const float* correction = nullptr;  // [num_experts] or null
  int64_t groups = 1, top_groups = 1;
};

// Rows contiguous.
struct RouterBatch {
  int64_t tokens = 0;
  const void* x = nullptr;  // [tokens, hidden]
  DType x_type = DType::f32;
  int64_t x_stride = 0;
  void* logits = nullptr;  // [tokens, num_experts]; the choice is made from these, as they are rounded
  DType logits_type = DType::f32;
  float* weights = nullptr;  // [tokens, top_k]
  int64_t* ids = nullptr;    // [tokens, top_k], the best choice first
};

class RouterForward {
 public:
  RouterForward(const KernelTable& kernels, int threads);

  void run(const RouterView& layer, const RouterBatch& batch);

  int64_t workspace_bytes() const;

 private:
  const KernelTable& kernels_;
  Team team_;
  Barrier barrier_;
  WorkRanges convert_, multiply_, choose_;
  Buffer x_;
  std::vector<Buffer> scratch_;  // by thread
};

// One token's choice from its logits, of different experts whatever the numbers are. `scores`: memory for 2 *
// num_experts + groups numbers. Equal scores: the smaller id first. A NaN counts as the least number.
void choose_experts(const RouterView& layer, const float* logits, float* scores, float* weights,
                    int64_t* ids) noexcept;

}  // namespace moerun::cpu
