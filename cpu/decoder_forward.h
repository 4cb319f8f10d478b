// One decoder layer of a few tokens on the CPU:
//   y = x + attention(norm(x))      out = y + experts(norm(y))
// Called by src/engine for models whose layers are just that; composes what serves each part alone, so that a
// step of a model comes into the core once a layer.
#pragma once
#include <cstdint>

#include "cpu/attention_forward.h"
#include "cpu/buffer.h"
#include "cpu/kernel_table.h"
#include "cpu/moe_forward.h"
#include "cpu/norm_forward.h"
#include "cpu/router_forward.h"

namespace moerun::cpu {

struct DecoderView {
  NormView attention_norm;
  AttentionView attention;
  NormView expert_norm;
  RouterView router;
  LayerView experts;
};

class DecoderForward {
 public:
  DecoderForward(const KernelTable& kernels, AttentionForward& attention, RouterForward& router,
                 MoeForward& experts)
      : kernels_(kernels), attention_(attention), router_(router), experts_(experts) {}

  // The two halves of a layer, in this order. batch.out has x's type, and holds y in between; activations are
  // rounded to that type between the parts, as models do it.
  void attend(const DecoderView& layer, const AttentionBatch& batch);
  void run_experts(const DecoderView& layer, const AttentionBatch& batch, Observer& observer);

  int64_t workspace_bytes() const;

 private:
  const KernelTable& kernels_;
  AttentionForward& attention_;
  RouterForward& router_;
  MoeForward& experts_;
  struct Rows;
  Rows rows_of(const DecoderView& layer, const AttentionBatch& batch);

  Buffer normed_, sum_, row_, logits_, weights_, ids_;
};

}  // namespace moerun::cpu
