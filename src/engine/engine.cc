#include "src/engine/engine.h"

#include <algorithm>

#include "cpu/cpu_info.h"
#include "cpu/dispatch.h"
#include "src/error.h"

namespace moerun {
namespace {

constexpr int kNoLayer = -1;  // in the timeline: not of a layer of experts
constexpr const char* kPhaseNames[cpu::kPhases] = {"convert", "gate_up", "down"};

// Books what a batch did into its layer's statistics and the timeline.
class Bookkeeper : public cpu::Observer {
 public:
  Bookkeeper(Layer& layer, Trace& trace) : layer_(layer), trace_(trace) {}

  void on_groups(const cpu::Groups& groups) override {
    for (int64_t a = 0; a < groups.active(); ++a)
      layer_.stats.expert_tokens[groups.experts[a]] += groups.offsets[a + 1] - groups.offsets[a];
    layer_.stats.weight_bytes += groups.active() * layer_.expert_bytes();
  }

  void on_spans(const std::vector<std::array<cpu::Span, cpu::kPhases>>& by_thread, int64_t tokens) override {
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

 private:
  Layer& layer_;
  Trace& trace_;
};

// The same of all layers of a stack.
class StackBookkeeper : public cpu::ModelObserver {
 public:
  StackBookkeeper(const DecoderStack& stack, Trace& trace, double& dense_seconds)
      : stack_(stack), trace_(trace), dense_seconds_(dense_seconds) {}

  cpu::Observer& experts_of(int64_t layer) override {
    return experts_.emplace(stack_.experts(layer), trace_);
  }

  void on_layer(int64_t layer) override { ++stack_.experts(layer).stats.batches; }

  void on_dense(const char* part, int64_t tokens, cpu::Span span) override {
    dense_seconds_ += std::chrono::duration<double>(span.end - span.begin).count();
    trace_.record({.name = part, .layer = kNoLayer, .tokens = tokens, .begin = span.begin, .end = span.end});
  }

 private:
  const DecoderStack& stack_;
  Trace& trace_;
  double& dense_seconds_;
  std::optional<Bookkeeper> experts_;
};

int threads_of(const EngineOptions& options) {
  return options.cpu_threads ? options.cpu_threads : cpu::cpu_info().usable_cores;
}

}  // namespace

Engine::Engine(const EngineOptions& options)
    : fork_generation_(cpu::fork_generation()),
      kernels_(cpu::choose_kernels(options.isa)),
      forward_(kernels_, cpu::NodeSplit(cpu::topology(), threads_of(options))),
      linear_(kernels_, threads_of(options)),
      attention_(kernels_, threads_of(options)),
      prompt_(kernels_, threads_of(options)),
      router_(kernels_, threads_of(options)),
      decoder_(kernels_, attention_, router_, forward_),
      model_(kernels_, forward_.team(), decoder_, linear_),
      gpu_options_(options.gpu) {
  if (!gpu_options_) {
    scheduler_ = std::make_unique<Scheduler>();
    return;
  }
  const GpuOptions& gpu = *gpu_options_;
  auto context = cuda::Context::open(cuda::open_driver(), gpu.device);
  const HybridOptions hybrid{.schedule = gpu.schedule,
                             .cache = gpu.cache,
                             .prefetch = gpu.prefetch,
                             .time_every = gpu.time_every,
                             .history = gpu.history,
                             .cache_bytes = cache_bytes(gpu.budget, context->memory())};
  context_ = context;
  hybrid_ = std::make_unique<HybridForward>(hybrid, std::move(context), kernels_, forward_, trace_);
  scheduler_ = std::make_unique<Scheduler>([this] {
    const std::lock_guard lock(mutex_);
    return hybrid_->pump();
  });
}

Engine::~Engine() {
  close();
  // In the child of a fork the scheduler's thread still counts as waiting: destroying what it waits for would
  // hang.
  if (fork_generation_ != cpu::fork_generation()) {
    [[maybe_unused]] const Scheduler* left_behind = scheduler_.release();
    [[maybe_unused]] const HybridForward* of_the_parent = hybrid_.release();  // no CUDA in a child
  }
}

std::shared_ptr<Layer> Engine::add_layer(const LayerShape& shape, std::vector<ExpertView> experts,
                                         std::shared_ptr<void> owner) {
  check_usable();
  std::shared_ptr<HostBlobs> blobs;
  if (gpu_options_) {
    cuda::ContextPtr context;
    {
      const std::lock_guard lock(mutex_);
      const BlobLayout layout = blob_layout(shape.format, shape.hidden, shape.inter, shape.bias);
      hybrid().check_budget(shape.num_experts, shape.top_k, layout.bytes);
      context = hybrid().context();
    }
    blobs = store_experts(context, shape, experts, std::move(owner), gpu_options_->pin, kernels_,
                          forward_.team());
    for (int64_t e = 0; e < shape.num_experts; ++e) experts[e] = expert_view(blobs->layout(), blobs->blob(e));
    owner = blobs;
  }
  const cpu::NodeSplit& split = forward_.split();
  Placement placement;
  if (split.nodes() > 1 && !gpu_options_)  // page-locked memory cannot be moved
    placement = place(bytes_of_nodes(experts, shape.format, shape.hidden, shape.inter, split), split);
  const std::lock_guard lock(mutex_);
  placement_.placed_bytes += placement.placed_bytes;
  placement_.elsewhere_bytes += placement.elsewhere_bytes;
  auto layer =
      std::make_shared<Layer>(static_cast<int>(layers_.size()), shape, std::move(experts), std::move(owner));
  if (gpu_options_) {
    hybrid().add_layer({layer->view(), blobs, shape.top_k, shape.bias});
    if (!blobs->pinned() && why_not_pinned_.empty()) why_not_pinned_ = blobs->why_not_pinned();
  }
  layers_.push_back(layer);
  return layer;
}

HybridForward& Engine::hybrid() const {
  check_usable();
  if (!hybrid_) throw InvalidState("this engine runs on the CPU; create one with device=\"cuda\"");
  return *hybrid_;
}

std::shared_ptr<const cuda::ExpertKernels> Engine::load_kernels(const cuda::CompiledKernels& compiled) {
  return std::make_shared<const cuda::ExpertKernels>(gpu(), compiled);
}

void Engine::set_kernels(const Layer& layer, std::shared_ptr<const cuda::ExpertKernels> kernels) {
  const std::lock_guard lock(mutex_);
  hybrid().set_kernels(layer.index(), std::move(kernels));
}

cuda::ContextPtr Engine::gpu() const {
  check_usable();
  const std::lock_guard lock(context_mutex_);
  if (!context_) throw InvalidState("this engine runs on the CPU; create one with device=\"cuda\"");
  return context_;
}

std::string Engine::why_not_pinned() const {
  const std::lock_guard lock(mutex_);
  return why_not_pinned_;
}

// Runs work on the calling thread. In the child of a fork that thread may still carry the parent's pool of
// OpenMP threads, which do not exist here; the scheduler's thread is new and has none.
template <class Work>
void Engine::run_here(Work&& work) {
  check_usable();
  if (fork_generation_ == 0 || forward_.team().size() == 1) return work();
  run_on_scheduler(work);
}

template <class Work>
void Engine::run_on_scheduler(Work&& work) {
  check_usable();
  const JobRef job = scheduler_->submit([&work] { work(); });
  while (!job->wait_for(std::chrono::milliseconds(1000))) continue;
  job->rethrow();
}

// With a GPU, everything runs on the scheduler's thread, which the device's context belongs to.
template <class Work>
void Engine::run_where_batches_run(Work&& work) {
  if (gpu_options_) return run_on_scheduler(work);
  run_here(work);
}

void Engine::forward(Layer& layer, const cpu::Batch& batch) {
  run_where_batches_run([&] { compute(layer, batch); });
}

std::vector<policy::ComputePoint> Engine::time_cpu(const Layer& layer, DType x_type) {
  const TimedLayer timed{layer.view(), layer.shape().top_k, layer.expert_bytes(), x_type};
  std::vector<policy::ComputePoint> points;
  run_where_batches_run([&] {
    const std::lock_guard lock(mutex_);
    points = moerun::time_cpu(timed, kernels_, forward_);
  });
  return points;
}

std::vector<policy::ComputePoint> Engine::time_gpu(const Layer& layer, DType x_type) {
  std::vector<policy::ComputePoint> points;
  run_where_batches_run([&] {
    const std::lock_guard lock(mutex_);
    points = hybrid().time_gpu(layer.index(), x_type);
  });
  return points;
}

std::vector<policy::CopyPoint> Engine::time_copies(const Layer& layer) {
  std::vector<policy::CopyPoint> points;
  run_where_batches_run([&] {
    const std::lock_guard lock(mutex_);
    points = hybrid().time_copies(layer.index());
  });
  return points;
}

void Engine::set_cost(const Layer& layer, const policy::CostModel& cost) {
  const std::lock_guard lock(mutex_);
  hybrid().set_cost(layer.index(), cost);
}

policy::CostModel Engine::cost(const Layer& layer) const {
  const std::lock_guard lock(mutex_);
  return hybrid().cost(layer.index());
}

// While mutex_ is held.
template <class Work>
void Engine::time_dense(const char* name, int64_t tokens, Work&& work) {
  const auto begin = cpu::Clock::now();
  work();
  const auto end = cpu::Clock::now();
  dense_seconds_ += std::chrono::duration<double>(end - begin).count();
  trace_.record({.name = name, .layer = kNoLayer, .tokens = tokens, .begin = begin, .end = end});
}

template <class Work>
void Engine::run_dense(const char* name, int64_t tokens, Work&& work) {
  run_here([&] {
    const std::lock_guard lock(mutex_);
    time_dense(name, tokens, work);
  });
}

void Engine::decode(const DecoderStack& stack, const cpu::ModelBatch& batch) {
  if (gpu_options_) throw InvalidState("decoder layers run in engines without a GPU only");
  if (batch.caches.size() != stack.view().layers.size())
    throw InvalidArgument("a decoder of " + std::to_string(stack.view().layers.size()) +
                          " layers needs as many caches, got " + std::to_string(batch.caches.size()));
  run_here([&] {
    const std::lock_guard lock(mutex_);
    StackBookkeeper bookkeeper(stack, trace_, dense_seconds_);
    model_.run(stack.view(), batch, bookkeeper);
  });
}

void Engine::linear(const cpu::LinearView& layer, const cpu::LinearBatch& batch) {
  run_dense("linear", batch.tokens, [&] { linear_.run(layer, batch); });
}

void Engine::attention(const cpu::AttentionView& layer, const cpu::AttentionBatch& batch) {
  run_dense("attention", batch.sequences * batch.tokens, [&] { attention_.run(layer, batch); });
}

void Engine::attend_prompt(const cpu::PromptBatch& batch) {
  run_dense("attention", batch.sequences * batch.tokens, [&] { prompt_.run(batch); });
}

void Engine::route(const cpu::RouterView& layer, const cpu::RouterBatch& batch) {
  run_dense("router", batch.tokens, [&] { router_.run(layer, batch); });
}

void Engine::rms_norm(const cpu::NormView& norm, const cpu::NormBatch& batch) {
  run_dense("norm", batch.rows, [&] { cpu::rms_norm(kernels_, forward_.team(), norm, batch); });
}

void Engine::warm_start(const Layer& layer, std::span<const double> shares) {
  const std::lock_guard lock(mutex_);
  hybrid().warm_start(layer.index(), shares);
}

void Engine::start() {
  run_where_batches_run([&] {
    const std::lock_guard lock(mutex_);
    hybrid().start();
  });
}

JobRef Engine::submit(std::shared_ptr<Layer> layer, const cpu::Batch& batch) {
  check_usable();
  return scheduler_->submit([this, layer = std::move(layer), batch] { compute(*layer, batch); });
}

JobRef Engine::submit(std::shared_ptr<Layer> layer, const cpu::Batch& batch, uintptr_t stream) {
  const cpu::Routing& r = batch.routing;
  const int64_t hidden = layer->shape().hidden;
  if (batch.x_stride != hidden || batch.out_stride != hidden || batch.x_type != batch.out_type ||
      r.ids_stride != r.top_k || r.weights_stride != r.top_k)
    throw InvalidArgument("arrays on the GPU must be contiguous, and out of x's type");
  const cuda::ContextPtr context = gpu();
  JobRef job =
      scheduler_->make([this, layer = std::move(layer), batch](Job& self) { compute(*layer, batch, &self); });
  job->order_behind(context, stream);
  scheduler_->submit(job);
  return job;
}

void Engine::keep(std::shared_ptr<Layer> layer, std::vector<int32_t> experts, bool kept) {
  check_usable();
  if (!gpu_options_) return;
  for (const int32_t expert : experts)
    if (expert < 0 || expert >= layer->shape().num_experts)
      throw InvalidArgument("expert " + std::to_string(expert) +
                            " cannot be kept: the layer has experts 0 to " +
                            std::to_string(layer->shape().num_experts - 1));
  scheduler_->submit([this, layer = std::move(layer), experts = std::move(experts), kept] {
    const std::lock_guard lock(mutex_);
    hybrid_->keep(layer->index(), experts, kept);
  });
}

void Engine::hint(std::shared_ptr<Layer> layer, std::span<const int64_t> ids, int64_t k, int32_t distance) {
  check_usable();
  if (!gpu_options_ || ids.empty()) return;
  const int64_t experts = layer->shape().num_experts;
  std::vector<int32_t> loads(experts, 0), ranks(experts, static_cast<int32_t>(k));
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= experts) continue;
    ++loads[ids[i]];
    ranks[ids[i]] = std::min(ranks[ids[i]], static_cast<int32_t>(static_cast<int64_t>(i) % k));
  }
  scheduler_->submit(
      [this, layer = std::move(layer), loads = std::move(loads), ranks = std::move(ranks), distance] {
        const std::lock_guard lock(mutex_);
        hybrid_->hint(layer->index(), loads, ranks, distance);
      });
}

void Engine::compute(Layer& layer, const cpu::Batch& batch, Job* on_device) {
  const std::lock_guard lock(mutex_);
  Bookkeeper bookkeeper(layer, trace_);
  if (hybrid_) {
    const double before = layer.stats.seconds;
    const auto begin = cpu::Clock::now();
    if (on_device) {
      StreamOrder& order = *on_device->order();
      const DeviceBatch device{batch, order.given(), order.done(),
                               [on_device] { on_device->finish_early(); }};
      hybrid_->run(layer.index(), device, bookkeeper);
    } else {
      hybrid_->run(layer.index(), batch, bookkeeper);
    }
    layer.stats.seconds = before + std::chrono::duration<double>(cpu::Clock::now() - begin).count();
  } else {
    forward_.run(layer.view(), batch, bookkeeper);
  }
  ++layer.stats.batches;
}

EngineStats Engine::stats() const {
  check_process();
  const std::lock_guard lock(mutex_);
  EngineStats s;
  s.cpu_threads = forward_.team().size();
  s.isa = kernels_.isa;
  s.workspace_bytes = forward_.workspace_bytes() + linear_.workspace_bytes() + attention_.workspace_bytes() +
                      prompt_.workspace_bytes() + router_.workspace_bytes() + decoder_.workspace_bytes() +
                      model_.workspace_bytes();
  s.dense_seconds = dense_seconds_;
  s.numa_nodes = forward_.split().nodes();
  s.placement = placement_;
  for (const auto& layer : layers_) s.layers.push_back(layer->stats);
  s.gpu = hybrid_ ? hybrid_->stats() : last_gpu_stats_;
  return s;
}

void Engine::write_trace(const std::string& path) const {
  check_process();
  trace_.write(path);
}

void Engine::close() {
  closed_ = true;
  if (fork_generation_ != cpu::fork_generation()) return;
  scheduler_->stop();
  const std::lock_guard lock(mutex_);
  if (!hybrid_) return;
  last_gpu_stats_ = hybrid_->stats();
  hybrid_.reset();
  const std::lock_guard context_lock(context_mutex_);
  context_.reset();
}

void Engine::check_usable() const {
  if (closed_) throw InvalidState("the engine is closed; create a new one");
  check_process();
}

void Engine::check_process() const {
  if (fork_generation_ != cpu::fork_generation())
    throw InvalidState(
        "this engine was created before fork(), and its threads do not exist in this process; create the "
        "engine in the "
        "child, or start workers with multiprocessing's 'spawn'");
}

}  // namespace moerun
