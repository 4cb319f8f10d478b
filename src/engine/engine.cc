#include "src/engine/engine.h"

#include <algorithm>
#include <utility>

#include "cpu/cpu_info.h"
#include "cpu/dispatch.h"
#include "src/engine/bookkeeper.h"
#include "src/error.h"

namespace moerun {
namespace {

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
  gate_ = std::make_shared<StreamGate>(context, gpu.stream_waits);
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
  std::shared_ptr<Layer> layer;
  const auto add = [&] {
    const std::lock_guard lock(mutex_);
    placement_.placed_bytes += placement.placed_bytes;
    placement_.elsewhere_bytes += placement.elsewhere_bytes;
    layer = std::make_shared<Layer>(static_cast<int>(layers_.size()), shape, std::move(experts),
                                    std::move(owner));
    if (gpu_options_) {
      hybrid().add_layer({layer->view(), blobs, shape.top_k, shape.bias});
      forget_reserved();
      if (!blobs->pinned() && why_not_pinned_.empty()) why_not_pinned_ = blobs->why_not_pinned();
    }
    layers_.push_back(layer);
  };
  if (!gpu_options_) {
    add();
  } else {  // the caches change: no stream may wait for a batch then
    gate()->between_submissions([&] {
      run_on_scheduler([] {});
      add();
    });
  }
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

std::shared_ptr<StreamGate> Engine::gate() const {
  check_usable();
  const std::lock_guard lock(context_mutex_);
  if (!gate_) throw InvalidState("this engine runs on the CPU; create one with device=\"cuda\"");
  return gate_;
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
  run_where_batches_run([&] {
    if (gpu_options_) scheduler_->throw_earlier_failure();
    compute(layer, batch);
  });
}

void Engine::synchronize() {
  run_on_scheduler([&] { scheduler_->throw_earlier_failure(); });
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

template <class Work>
void Engine::run_dense(const char* name, int64_t tokens, Work&& work) {
  run_here([&] {
    const std::lock_guard lock(mutex_);
    const auto begin = cpu::Clock::now();
    work();
    book_dense(name, tokens, {begin, cpu::Clock::now()}, trace_, dense_seconds_);
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
  scheduler_->throw_earlier_failure();
  return scheduler_->submit([this, layer = std::move(layer), batch] { compute(*layer, batch); });
}

JobRef Engine::submit(std::shared_ptr<Layer> layer, const cpu::Batch& batch, uintptr_t stream) {
  const cpu::Routing& r = batch.routing;
  const int64_t hidden = layer->shape().hidden;
  if (batch.x_stride != hidden || batch.out_stride != hidden || batch.x_type != batch.out_type ||
      r.ids_stride != r.top_k || r.weights_stride != r.top_k)
    throw InvalidArgument("arrays on the GPU must be contiguous, and out of x's type");
  const std::shared_ptr<StreamGate> gate = this->gate();
  scheduler_->throw_earlier_failure();
  const auto needs_memory = [&batch, layer = layer.get()] {
    const int64_t reserved = layer->reserved_tokens[static_cast<int>(batch.x_type)];
    return reserved == 0 || batch.routing.tokens > reserved || batch.routing.top_k > layer->shape().top_k;
  };
  JobRef job =
      scheduler_->make([this, layer = layer, batch](Job& self) { compute_on_device(*layer, batch, self); });
  gate->submit(*scheduler_, job, cuda::StreamView::borrow(*gpu(), stream), needs_memory,
               [this](const cuda::StreamView& other) { return go_on_beside(other); });
  return job;
}

// Whether the engine's streams go on while the caller's waits.
bool Engine::go_on_beside(const cuda::StreamView& stream) {
  bool do_go_on = false;
  run_on_scheduler([&] {
    const std::lock_guard lock(mutex_);
    hybrid_->context()->make_current();
    do_go_on = gate_->go_on_beside(stream, hybrid_->streams());
  });
  return do_go_on;
}

// Work that needs no memory and that nobody waits for.
template <class Work>
void Engine::submit_aside(Work&& work) {
  JobRef job = scheduler_->make(std::forward<Work>(work));
  job->set_allocates(false);
  scheduler_->submit(std::move(job));
}

void Engine::keep(std::shared_ptr<Layer> layer, std::vector<int32_t> experts, bool kept) {
  check_usable();
  if (!gpu_options_) return;
  for (const int32_t expert : experts)
    if (expert < 0 || expert >= layer->shape().num_experts)
      throw InvalidArgument("expert " + std::to_string(expert) +
                            " cannot be kept: the layer has experts 0 to " +
                            std::to_string(layer->shape().num_experts - 1));
  submit_aside([this, layer = std::move(layer), experts = std::move(experts), kept] {
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
  submit_aside(
      [this, layer = std::move(layer), loads = std::move(loads), ranks = std::move(ranks), distance] {
        const std::lock_guard lock(mutex_);
        hybrid_->hint(layer->index(), loads, ranks, distance);
      });
}

// While mutex_ is held.
void Engine::forget_reserved() {
  for (const auto& layer : layers_)
    for (std::atomic<int64_t>& tokens : layer->reserved_tokens) tokens = 0;
}

// Books a batch that CPU and GPU run together. While mutex_ is held.
template <class Run>
void Engine::book(Layer& layer, Run&& run) {
  Bookkeeper bookkeeper(layer, trace_);
  const double before = layer.stats.seconds;
  const auto begin = cpu::Clock::now();
  try {
    run(bookkeeper);
  } catch (...) {
    forget_reserved();  // the next batch may find less memory than there was
    throw;
  }
  layer.stats.seconds = before + std::chrono::duration<double>(cpu::Clock::now() - begin).count();
  ++layer.stats.batches;
  if (std::exchange(times_caches_made_, hybrid_->times_caches_made()) == times_caches_made_) return;
  forget_reserved();
  gate_->forget_trials();
}

void Engine::compute(Layer& layer, const cpu::Batch& batch) {
  const std::lock_guard lock(mutex_);
  if (hybrid_)
    return book(layer, [&](cpu::Observer& observer) { hybrid_->run(layer.index(), batch, observer); });
  Bookkeeper bookkeeper(layer, trace_);
  forward_.run(layer.view(), batch, bookkeeper);
  ++layer.stats.batches;
}

void Engine::compute_on_device(Layer& layer, const cpu::Batch& batch, Job& job) {
  const std::lock_guard lock(mutex_);
  const bool stream_waits = job.order()->stream_waits();
  const DeviceBatch device{.batch = batch,
                           .order = *job.order(),
                           .enqueued =
                               [&] {
                                 if (!stream_waits) job.finish_early();
                               },
                           .allocates = job.allocates()};
  std::atomic<int64_t>& reserved = layer.reserved_tokens[static_cast<int>(batch.x_type)];
  book(layer, [&](cpu::Observer& observer) { hybrid_->run(layer.index(), device, observer); });
  if (device.allocates) reserved = hybrid_->reserve(layer.index(), batch.x_type, batch.routing.tokens);
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
  gate_.reset();
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
