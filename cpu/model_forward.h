// All decoder layers of a model for a few tokens on the CPU, then its last norm and the head over the
// vocabulary: a decode step in one call. Called by src/engine; composes what serves each part alone.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/decoder_forward.h"
#include "cpu/linear_forward.h"
#include "cpu/norm_forward.h"

namespace moerun::cpu {

struct ModelView {
  std::vector<DecoderView> layers;
  NormView norm;    // width 0: none, and no head
  LinearView head;  // outputs 0: none
};

// What the layers share of an AttentionBatch, whose `cache` and `out` are not looked at, and what they do
// not: a cache for every layer. out: of the last `kept` tokens of every sequence, logits where there is a
// head, else hidden states.
struct ModelBatch {
  AttentionBatch shared;
  std::vector<KeyValues> caches;
  int64_t kept = 1;
  LinearOutput out;
};

// Sees what is done, by the calling thread.
class ModelObserver {
 public:
  virtual ~ModelObserver() = default;
  // For a layer's experts; called before they run, and `on_layer` after.
  virtual Observer& experts_of(int64_t layer) = 0;
  virtual void on_layer(int64_t layer) = 0;
  virtual void on_dense(const char* part, int64_t tokens, Span span) = 0;
};

class ModelForward {
 public:
  ModelForward(const KernelTable& kernels, const Team& team, DecoderForward& decoder, LinearForward& linear)
      : kernels_(kernels), team_(team), decoder_(decoder), linear_(linear) {}

  void run(const ModelView& model, const ModelBatch& batch, ModelObserver& observer);

  int64_t workspace_bytes() const;

 private:
  void finish(const ModelView& model, const ModelBatch& batch, const LinearOutput& states);

  const KernelTable& kernels_;
  const Team& team_;
  DecoderForward& decoder_;
  LinearForward& linear_;
  Buffer states_[2], normed_;  // states: what goes into a layer, and what comes out of it
};

}  // namespace moerun::cpu
