// An engine of CPU and GPU without Python, for the tests of HybridForward: random layers in pinned blobs,
// kernels in words for the stand-in's emulators, and batches whose right result the CPU alone gives.
#pragma once
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cpu/moe_forward.h"
#include "cuda/handles.h"
#include "src/expert_store/host_blobs.h"
#include "src/expert_store/quantise.h"
#include "src/scheduler/hybrid_forward.h"
#include "tests/native/stand_in.h"

namespace moerun {

constexpr int64_t kExperts = 6, kHidden = 24, kInter = 260, kTopK = 2, kLayers = 2;

struct Ignore : cpu::Observer {
  void on_groups(const cpu::Groups&) override {}
  void on_spans(const std::vector<std::array<cpu::Span, cpu::kPhases>>&, int64_t) override {}
};

// --- kernels in words, as python/moerun/kernels/contract.py writes them

inline cuda::CompiledKernel kernel(const std::string& function, int tile_rows, int tile_tokens, int split,
                                   std::vector<uint32_t> parameter_bytes) {
  const auto number = [](int64_t n) { return std::to_string(n) + "\n"; };
  const std::string image = "moerun_kernel 1\nfunction " + function +
                            "\nformat fp32\nx fp32\ncompute fp32\nactivation silu\nalpha 1.702\nlimit 7.0\n"
                            "bias 0\nhidden " +
                            number(kHidden) + "inter " + number(kInter) + "top_k " + number(kTopK) +
                            "h_stride " + number(320) + "y_stride " + number(64) + "tile_rows " +
                            number(tile_rows) + "tile_tokens " + number(tile_tokens) + "split " +
                            number(split);
  return {.function = function,
          .image = image,
          .parameter_bytes = std::move(parameter_bytes),
          .tile_rows = tile_rows,
          .tile_tokens = tile_tokens,
          .split = split};
}

inline cuda::CompiledRegime regime(int tile_tokens, int split) {
  const std::vector<uint32_t> five(5, 8), four(4, 8);
  cuda::CompiledRegime r{.tile_tokens = tile_tokens,
                         .gate_up = kernel("moerun_gate_up", 32, tile_tokens, split, five),
                         .down = kernel("moerun_down", 16, tile_tokens, split, five),
                         .activate = std::nullopt};
  if (split > 1) r.activate = kernel("moerun_activate", 64, tile_tokens, split, four);
  return r;
}

inline cuda::CompiledKernels kernels() {
  return {.hidden = kHidden,
          .inter = kInter,
          .top_k = kTopK,
          .x_type = DType::f32,
          .compute_type = DType::f32,
          .h_stride = 320,
          .y_stride = 64,
          .regimes = {regime(1, 1), regime(4, 1), regime(4, 3)},
          .combine = kernel("moerun_combine", 32, 0, 1, {8, 8, 8, 8, 4})};
}

// --- an engine without Python

struct Weights {
  std::vector<float> numbers;
  std::vector<ExpertView> views;
  explicit Weights(unsigned seed) : numbers(kExperts * 3 * kInter * kHidden) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.0f, 0.15f);
    for (float& n : numbers) n = normal(random);
    for (int64_t e = 0; e < kExperts; ++e) {
      const float* p = numbers.data() + e * 3 * kInter * kHidden;
      views.push_back({.gate = {p, kHidden, 1},
                       .up = {p + kInter * kHidden, kHidden, 1},
                       .down = {p + 2 * kInter * kHidden, kInter, 1}});
    }
  }
};

struct Batch {
  int64_t tokens;
  std::vector<float> x, weights, out;
  std::vector<int64_t> ids;
  Batch(int64_t count, unsigned seed) : tokens(count), out(count * kHidden, NAN) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < count * kHidden; ++i) x.push_back(normal(random));
    for (int64_t i = 0; i < count * kTopK; ++i) {
      ids.push_back(static_cast<int64_t>(random() % (kExperts + 1)) - 1);
      weights.push_back(static_cast<float>(random() % 100) / 100.0f);
    }
  }
  cpu::Batch view() {
    return {.x = x.data(),
            .x_stride = kHidden,
            .out = out.data(),
            .out_stride = kHidden,
            .routing = {.ids = ids.data(),
                        .ids_are_64_bit = true,
                        .ids_stride = kTopK,
                        .weights = weights.data(),
                        .weights_stride = kTopK,
                        .tokens = tokens,
                        .top_k = kTopK}};
  }
};

inline const std::vector<Weights>& weights() {
  static const std::vector<Weights> all = [] {
    std::vector<Weights> made;
    made.reserve(kLayers);  // the views point into it
    for (unsigned seed = 0; seed < kLayers; ++seed) made.emplace_back(seed);
    return made;
  }();
  return all;
}

inline cpu::LayerView view_of(const std::vector<ExpertView>& experts) {
  return {.experts = experts.data(), .num_experts = kExperts, .hidden = kHidden, .inter = kInter};
}

inline const BlobLayout& layout() {
  static const BlobLayout l = blob_layout(WeightFormat::f32, kHidden, kInter, false);
  return l;
}

// A batch whose arrays lie on the device, and the caller's stream that it is ordered with.
class OnDevice {
 public:
  OnDevice(const cuda::ContextPtr& context, const Batch& batch)
      : stream_(context),
        order_(context, nullptr),
        device_(context, kArrays * kMostBytes),
        host_(context, kArrays * kMostBytes),
        tokens_(batch.tokens),
        context_(context) {
    put(0, batch.x);
    put(1, batch.ids);
    put(2, batch.weights);
    stream_.copy_to_device(device_.address(), host_.data(), (kArrays - 1) * kMostBytes);
    order_.begin(stream_);
  }
  ~OnDevice() { wait(); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  DeviceBatch view(Batch& batch, StreamOrder& order) {
    cpu::Batch there = batch.view();
    there.x = at(0);
    there.routing.ids = at(1);
    there.routing.weights = at(2);
    there.out = at(3);
    return {.batch = there, .order = order, .enqueued = [this] { enqueued_ = true; }};
  }
  DeviceBatch view(Batch& batch) { return view(batch, order_); }
  // In the caller's stream, which waits for the batch on the device.
  void fetch(Batch& batch) {
    expect(enqueued_, "a batch on the device ends without a word");
    order_.join();
    fetch_in_order(batch);
  }
  // The same where the stream waits already.
  void fetch_in_order(Batch& batch) {
    std::byte* const out = static_cast<std::byte*>(host_.data()) + 3 * kMostBytes;
    stream_.copy_to_host(out, device_.address() + 3 * kMostBytes, tokens_ * kHidden * sizeof(float));
    stream_.synchronize();
    std::memcpy(batch.out.data(), out, batch.out.size() * sizeof(float));
  }

  void wait() { wait_until_idle(*context_, stream_); }
  const cuda::Stream& stream() const { return stream_; }

 private:
  static constexpr size_t kMostBytes = 4096, kArrays = 4;
  template <class T>
  void put(size_t which, const std::vector<T>& values) {
    std::memcpy(static_cast<std::byte*>(host_.data()) + which * kMostBytes, values.data(),
                values.size() * sizeof(T));
  }
  void* at(size_t which) const { return reinterpret_cast<void*>(device_.address() + which * kMostBytes); }

  cuda::Stream stream_;
  StreamOrder order_;
  cuda::DeviceMemory device_;
  cuda::PinnedMemory host_;
  int64_t tokens_;
  bool enqueued_ = false;
  cuda::ContextPtr context_;
};

class Engine {
 public:
  Engine(policy::SplitMethod schedule, int64_t slots)
      : cpu_(cpu::ref_kernels(), cpu::NodeSplit(cpu::one_node(), 2)),
        hybrid_({.schedule = schedule, .cache_bytes = slots * layout().bytes},
                cuda::Context::open(cuda::open_driver()), cpu::ref_kernels(), cpu_, trace_) {}

  void load(bool pin = true) {
    const auto loaded = std::make_shared<const cuda::ExpertKernels>(hybrid_.context(), kernels());
    for (int layer = 0; layer < kLayers; ++layer) {
      auto blobs = std::make_shared<HostBlobs>(hybrid_.context(), layout(), kExperts, pin);
      std::vector<std::byte*> targets;
      for (int64_t e = 0; e < kExperts; ++e) targets.push_back(blobs->blob(e));
      quantise_experts(weights()[layer].views.data(), DType::f32, layout(), targets.data(), kExperts,
                       cpu::ref_kernels(), cpu_.team());
      for (int64_t e = 0; e < kExperts; ++e) views_[layer].push_back(expert_view(layout(), blobs->blob(e)));
      hybrid_.add_layer({view_of(views_[layer]), blobs, kTopK});
      hybrid_.set_kernels(layer, loaded);
    }
  }

  void run(int layer, Batch& batch) {
    Ignore ignore;
    hybrid_.run(layer, batch.view(), ignore);
  }
  void run(int layer, Batch& batch, OnDevice& there) {
    Ignore ignore;
    hybrid_.run(layer, there.view(batch), ignore);
  }
  // Whether the last result of `batch` is right.
  static bool right(int layer, Batch& batch) {
    cpu::MoeForward alone(cpu::ref_kernels(), cpu::NodeSplit(cpu::one_node(), 1));
    Ignore ignore;
    Batch again = batch;
    alone.run(view_of(weights()[layer].views), again.view(), ignore);
    for (size_t i = 0; i < again.out.size(); ++i)
      // Sums of 24 and 260 fp32 products of numbers around 1, in two orders: far below 1e-3 apart.
      if (!(std::fabs(again.out[i] - batch.out[i]) < 1e-3f)) return false;
    return true;
  }
  void hint(int layer, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<int32_t> loads(kExperts), ranks(kExperts);
    for (int64_t e = 0; e < kExperts; ++e) {
      loads[e] = static_cast<int32_t>(random() % 2);
      ranks[e] = static_cast<int32_t>(e);
    }
    hybrid_.hint(layer, loads, ranks);
  }
  HybridForward& hybrid() { return hybrid_; }

 private:
  cpu::MoeForward cpu_;
  Trace trace_;
  std::vector<ExpertView> views_[kLayers];
  HybridForward hybrid_;
};

}  // namespace moerun
