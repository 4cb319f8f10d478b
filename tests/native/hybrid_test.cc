// HybridForward on the stand-in driver, without Python, so that the sanitizers see all of it: every schedule
// against the CPU alone, prefetches that come true or die, every call to the driver failing once, and too
// little memory. test_hybrid.py compiles it plain and under sanitizers; MOERUN_LIBCUDA names the stand-in.
// Arguments: the folder of a fake OpenMP runtime, a group of tests. Prints what is wrong and returns 1.
#include <dlfcn.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cpu/moe_forward.h"
#include "cuda/handles.h"
#include "src/error.h"
#include "src/expert_store/host_blobs.h"
#include "src/expert_store/quantise.h"
#include "src/scheduler/hybrid_forward.h"

namespace moerun {
namespace {

constexpr int64_t kExperts = 6, kHidden = 40, kInter = 260, kTopK = 2, kLayers = 2;

int failures = 0;

void expect(bool good, const std::string& what) {
  if (good) return;
  ++failures;
  std::printf("wrong: %s\n", what.c_str());
}

// The interface of the stand-in (tests/fakecuda/fakecuda.h), in the library that open_driver() opens.
struct Fake {
  template <class Function>
  static Function* find(const char* name) {
    static void* const library = dlopen(std::getenv("MOERUN_LIBCUDA"), RTLD_NOW | RTLD_LOCAL);
    void* const address = library ? dlsym(library, name) : nullptr;
    if (address == nullptr) throw std::runtime_error(std::string("the stand-in driver lacks ") + name);
    return reinterpret_cast<Function*>(address);
  }
  void (*fail)(const char*, int64_t, int) = find<void(const char*, int64_t, int)>("fakecuda_fail");
  int64_t (*calls)(const char*) = find<int64_t(const char*)>("fakecuda_calls");
  int64_t (*leaks)() = find<int64_t()>("fakecuda_leaks");
  const char* (*violation)(int64_t) = find<const char*(int64_t)>("fakecuda_violation");
  void (*reset)() = find<void()>("fakecuda_reset");
};

const Fake& fake() {
  static const Fake interface;
  return interface;
}

void expect_clean(const std::string& after) {
  expect(fake().leaks() == 0, std::to_string(fake().leaks()) + " leaks after " + after);
  const char* const violation = fake().violation(0);
  expect(violation == nullptr, after + ": " + (violation ? violation : ""));
}

struct Ignore : cpu::Observer {
  void on_groups(const cpu::Groups&) override {}
  void on_spans(const std::vector<std::array<cpu::Span, cpu::kPhases>>&, int64_t) override {}
};

// --- kernels in words, as python/moerun/kernels/contract.py writes them

cuda::CompiledKernel kernel(const std::string& function, int tile_rows, int tile_tokens, int split,
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

cuda::CompiledRegime regime(int tile_tokens, int split) {
  const std::vector<uint32_t> five(5, 8), four(4, 8);
  cuda::CompiledRegime r{.tile_tokens = tile_tokens,
                         .gate_up = kernel("moerun_gate_up", 32, tile_tokens, split, five),
                         .down = kernel("moerun_down", 16, tile_tokens, split, five),
                         .activate = std::nullopt};
  if (split > 1) r.activate = kernel("moerun_activate", 64, tile_tokens, split, four);
  return r;
}

cuda::CompiledKernels kernels() {
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

const std::vector<Weights>& weights() {
  static const std::vector<Weights> all = [] {
    std::vector<Weights> made;
    made.reserve(kLayers);  // the views point into it
    for (unsigned seed = 0; seed < kLayers; ++seed) made.emplace_back(seed);
    return made;
  }();
  return all;
}

cpu::LayerView view_of(const std::vector<ExpertView>& experts) {
  return {.experts = experts.data(), .num_experts = kExperts, .hidden = kHidden, .inter = kInter};
}

const BlobLayout& layout() {
  static const BlobLayout l = blob_layout(WeightFormat::f32, kHidden, kInter, false);
  return l;
}

class Engine {
 public:
  Engine(policy::SplitMethod schedule, int64_t slots, bool pin = true)
      : cpu_(cpu::ref_kernels(), cpu::NodeSplit(cpu::one_node(), 2)),
        hybrid_({.schedule = schedule, .cache_bytes = slots * layout().bytes},
                cuda::Context::open(cuda::open_driver()), cpu::ref_kernels(), cpu_, trace_) {
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
  // Whether the last result of `batch` is right.
  static bool right(int layer, Batch& batch) {
    cpu::MoeForward alone(cpu::ref_kernels(), cpu::NodeSplit(cpu::one_node(), 1));
    Ignore ignore;
    Batch again = batch;
    alone.run(view_of(weights()[layer].views), again.view(), ignore);
    for (size_t i = 0; i < again.out.size(); ++i)
      // Sums of 40 and 260 fp32 products of numbers around 1, in two orders: far below 1e-3 apart.
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

// --- groups of tests

const policy::SplitMethod kSchedules[] = {policy::SplitMethod::ondemand, policy::SplitMethod::static_,
                                          policy::SplitMethod::balanced, policy::SplitMethod::hybrimoe,
                                          policy::SplitMethod::gpu,      policy::SplitMethod::cpu};

// Few slots, many tokens: steps that fill a slot several times are among them.
void schedules() {
  for (const policy::SplitMethod schedule : kSchedules)
    for (const bool pin : {true, false}) {
      {
        Engine engine(schedule, schedule == policy::SplitMethod::gpu ? kLayers * kExperts : 3, pin);
        for (unsigned seed = 0; seed < 12; ++seed) {
          const int layer = static_cast<int>(seed % kLayers);
          Batch batch(seed % 3 == 2 ? 30 : 1, seed);
          engine.hint(1 - layer, seed);
          engine.run(layer, batch);
          expect(Engine::right(layer, batch), "schedule " + std::to_string(static_cast<int>(schedule)) +
                                                  ", batch " + std::to_string(seed));
          while (seed % 4 == 0 && engine.hybrid().pump()) continue;
        }
        const HybridStats s = engine.hybrid().stats();
        expect(s.dma.prefetches == s.dma.completed + s.dma.cancelled + s.dma.promoted ||
                   schedule == policy::SplitMethod::cpu || engine.hybrid().pump(),
               "prefetches end in one way");
      }
      expect_clean("a schedule");
    }
}

// What a script did: how many batches gave a result, and what it threw.
struct Outcome {
  int right = 0;
  std::string error;
};

Outcome script() {
  Outcome outcome;
  try {
    Engine engine(policy::SplitMethod::ondemand, 3);
    for (unsigned seed = 0; seed < 4; ++seed) {
      const int layer = static_cast<int>(seed % kLayers);
      Batch batch(1 + seed % 2 * 8, seed);
      engine.run(layer, batch);
      expect(Engine::right(layer, batch), "a batch that did not throw");
      ++outcome.right;
      engine.hint(1 - layer, seed);
      engine.hybrid().pump();
    }
  } catch (const GpuError& error) {
    outcome.error = error.what();
  } catch (const GpuUnavailable& error) {
    outcome.error = error.what();
  } catch (const InvalidArgument& error) {  // a kernel whose parameters could not be asked for
    outcome.error = error.what();
  }
  return outcome;
}

// Every call that is made again and again however long something takes.
constexpr const char* kPolls[] = {"cuEventQuery", "cuCtxSetCurrent"};
constexpr const char* kCalls[] = {"cuInit",
                                  "cuDeviceGet",
                                  "cuDevicePrimaryCtxRetain",
                                  "cuCtxPushCurrent_v2",
                                  "cuMemGetInfo_v2",
                                  "cuMemAlloc_v2",
                                  "cuMemHostAlloc",
                                  "cuStreamCreateWithPriority",
                                  "cuEventCreate",
                                  "cuEventRecord",
                                  "cuEventSynchronize",
                                  "cuEventElapsedTime",
                                  "cuModuleLoadData",
                                  "cuModuleGetFunction",
                                  "cuFuncGetParamInfo",
                                  "cuLaunchKernel",
                                  "cuStreamWaitEvent",
                                  "cuMemcpyHtoDAsync_v2",
                                  "cuMemcpyDtoHAsync_v2",
                                  "cuStreamSynchronize",
                                  "cuMemFree_v2",
                                  "cuMemFreeHost",
                                  "cuEventDestroy_v2",
                                  "cuStreamDestroy_v2",
                                  "cuModuleUnload",
                                  "cuDevicePrimaryCtxRelease_v2"};

void one_fault(const char* call, int64_t n, int code) {
  fake().reset();
  fake().fail(call, n, code);
  script();
  fake().reset();
  expect_clean(std::string(call) + ", call " + std::to_string(n) + ", returned " + std::to_string(code));
}

// Every call of the driver fails once, one at a time: at most one exception, no wrong result, nothing left
// behind, and another engine works. Of a function that is called often, about `most` calls fail.
void faults(int64_t most) {
  fake().reset();
  expect(script().right == 4, "the script without a fault");
  std::vector<std::pair<const char*, int64_t>> made;
  for (const char* call : kCalls) made.emplace_back(call, fake().calls(call));
  for (const char* call : kPolls) made.emplace_back(call, 2);
  for (const auto& [call, count] : made) {
    const int64_t step = 1 + count / most;
    for (int64_t n = 1; n <= count; n += step) one_fault(call, n, 1);
    // Out of memory, and an illegal address, which is sticky.
    for (const int64_t n : {int64_t{1}, (count + 1) / 2, count})
      for (const int code : {2, 700})
        if (n > 0) one_fault(call, n, code);
  }
  expect(script().right == 4, "a new engine after the faults");
  expect_clean("the faults");
}

// An engine goes on after an error that it can recover from, and says the first cause after any other.
void recovery() {
  {
    Engine engine(policy::SplitMethod::ondemand, 4);
    Batch batch(3, 1);
    engine.run(0, batch);
    for (const char* call :
         {"cuLaunchKernel", "cuMemcpyHtoDAsync_v2", "cuEventRecord", "cuStreamWaitEvent"}) {
      fake().fail(call, 1, 1);
      bool thrown = false;
      try {
        engine.run(0, batch);
      } catch (const GpuError& error) {
        thrown = std::string(error.what()).find("INVALID_VALUE") != std::string::npos;
      }
      expect(thrown, std::string("an error of ") + call);
      engine.run(0, batch);
      expect(Engine::right(0, batch), std::string("a batch after an error of ") + call);
    }
    fake().fail("kernel", 1, 700);
    std::string first, second;
    try {
      engine.run(0, batch);
    } catch (const GpuError& error) {
      first = error.what();
    }
    try {
      engine.run(0, batch);
    } catch (const GpuError& error) {
      second = error.what();
    }
    expect(!first.empty() && second.find(first) != std::string::npos, "the first cause: " + second);
  }
  fake().reset();
  expect_clean("recovery");
}

void memory() {
  setenv("FAKECUDA_MEMORY", std::to_string(14 * layout().bytes).c_str(), 1);
  fake().reset();
  {
    Engine engine(policy::SplitMethod::ondemand, 12);
    Batch one(1, 1), many(400, 2);
    engine.run(0, one);
    expect(engine.hybrid().stats().slots == 12, "twelve slots");
    engine.run(0, many);  // needs memory that the cache has
    expect(Engine::right(0, many), "a batch that the cache made room for");
    const HybridStats s = engine.hybrid().stats();
    expect(s.shrunk > 0 && s.slots < 12 && s.slots > 0, "a smaller cache");
    engine.run(0, one);
    expect(Engine::right(0, one), "a batch after that");
  }
  unsetenv("FAKECUDA_MEMORY");
  fake().reset();
  expect_clean("too little memory");
}

}  // namespace
}  // namespace moerun

int main(int, char** arguments) {
  moerun::cpu::set_openmp_hint(arguments[1]);
  const std::string group = arguments[2];
  try {
    if (group == "schedules") moerun::schedules();
    if (group == "faults") moerun::faults(24);
    if (group == "some faults") moerun::faults(3);
    if (group == "recovery") moerun::recovery();
    if (group == "memory") moerun::memory();
  } catch (const std::exception& error) {
    moerun::expect(false, std::string("unexpected: ") + error.what());
  }
  std::printf(moerun::failures ? "failed\n" : "all good\n");
  return moerun::failures ? 1 : 0;
}
