// What the CPU has done, booked into a layer's statistics and the timeline. Used by the engine while it holds
// its mutex.
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "cpu/model_forward.h"
#include "src/engine/decoder_stack.h"
#include "src/engine/layer.h"
#include "src/trace/trace.h"

namespace moerun {

// Of one batch of a layer of experts.
class Bookkeeper : public cpu::Observer {
 public:
  Bookkeeper(Layer& layer, Trace& trace) : layer_(layer), trace_(trace) {}

  void on_groups(const cpu::Groups& groups) override;
  void on_spans(const std::vector<std::array<cpu::Span, cpu::kPhases>>& by_thread, int64_t tokens) override;

 private:
  Layer& layer_;
  Trace& trace_;
};

// Of what stands around the experts.
void book_dense(const char* part, int64_t tokens, cpu::Span span, Trace& trace, double& dense_seconds);

// Of all layers of a stack.
class StackBookkeeper : public cpu::ModelObserver {
 public:
  StackBookkeeper(const DecoderStack& stack, Trace& trace, double& dense_seconds)
      : stack_(stack), trace_(trace), dense_seconds_(dense_seconds) {}

  cpu::Observer& experts_of(int64_t layer) override {
    return experts_.emplace(stack_.experts(layer), trace_);
  }
  void on_layer(int64_t layer) override { ++stack_.experts(layer).stats.batches; }
  void on_dense(const char* part, int64_t tokens, cpu::Span span) override {
    book_dense(part, tokens, span, trace_, dense_seconds_);
  }

 private:
  const DecoderStack& stack_;
  Trace& trace_;
  double& dense_seconds_;
  std::optional<Bookkeeper> experts_;
};

}  // namespace moerun
