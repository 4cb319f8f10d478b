#include "src/scheduler/hybrid_forward.h"

#include <algorithm>
#include <bit>

#include "cpu/work_ranges.h"
#include "cuda/driver_error.h"
#include "src/error.h"

namespace moerun {
namespace {

using cpu::Clock;

// Rows of results of a part of a batch: more tokens are done in several parts, so that the step's memory
// stays a small part of the device's.
constexpr int64_t kMostRowBytes = int64_t{512} << 20;

std::string in_mebibytes(int64_t bytes) {
  const int64_t mib = (bytes + (1 << 20) - 1) >> 20;
  return std::to_string(mib) + "MiB";
}

const void* offset(const void* p, int64_t bytes) {
  return static_cast<const char*>(p) + bytes;
}

double us_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double, std::micro>(end - begin).count();
}

// Passes on what the CPU's threads did; its groups are only a share.
class ShareObserver : public cpu::Observer {
 public:
  explicit ShareObserver(cpu::Observer& all) : all_(all) {}
  void on_groups(const cpu::Groups&) override {}
  void on_spans(const std::vector<std::array<cpu::Span, cpu::kPhases>>& by_thread, int64_t) override {
    all_.on_spans(by_thread, 0);
  }

 private:
  cpu::Observer& all_;
};

}  // namespace

HybridForward::HybridForward(const HybridOptions& options, cuda::ContextPtr context,
                             const cpu::KernelTable& kernels, cpu::MoeForward& cpu, Trace& trace)
    : options_(options),
      context_(std::move(context)),
      cpu_kernels_(kernels),
      cpu_(cpu),
      trace_(trace),
      caches_(context_, options.cache, options.cache_bytes),
      step_(context_),
      planner_(options.schedule),
      ahead_(caches_, step_.fences(), options.schedule, options.prefetch, options.history),
      books_(trace),
      inbox_(context_) {}

HybridForward::~HybridForward() {
  recover(nullptr);
}

// --- layers

void HybridForward::add_layer(const HybridLayer& layer) {
  const auto experts = static_cast<int32_t>(layer.view.num_experts),
             top_k = static_cast<int32_t>(layer.top_k);
  const int64_t blob_bytes = layer.blobs->layout().bytes;
  const ExpertKind kind{layer.view.hidden, layer.view.inter, layer.view.format, layer.bias};
  layers_.push_back({layer, costs_.of(kind, blob_bytes), {}});
  caches_.add_layer(experts, top_k, blob_bytes);
  ahead_.add_layer(experts, top_k, layer.blobs, layers_.back().cost);
}

void HybridForward::check_budget(int64_t experts, int64_t top_k, int64_t blob_bytes) const {
  const auto refuse = [&](int64_t needed_bytes, const std::string& needs) {
    if (options_.cache_bytes >= needed_bytes) return;
    throw InvalidArgument("gpu_cache holds " + std::to_string(options_.cache_bytes / blob_bytes) +
                          " experts of " + in_mebibytes(blob_bytes) + ", but " + needs +
                          "; raise gpu_cache to " + in_mebibytes(needed_bytes) +
                          " or choose schedule=\"balanced\"");
  };
  if (options_.schedule == policy::SplitMethod::gpu)
    refuse(caches_.all_expert_bytes() + experts * blob_bytes,
           "schedule=\"gpu\" keeps all " + std::to_string(experts) + " of every layer there");
  if (options_.schedule == policy::SplitMethod::ondemand)
    refuse(top_k * blob_bytes, "one token needs " + std::to_string(top_k));
}

void HybridForward::set_kernels(int layer, std::shared_ptr<const cuda::ExpertKernels> kernels) {
  const cuda::CompiledKernels& shape = kernels->shape();
  Layer& l = layers_[layer];
  if (shape.hidden != l.view.hidden || shape.inter != l.view.inter || shape.top_k != l.top_k)
    throw InvalidArgument("these kernels were compiled for layers of another shape");
  l.kernels[static_cast<int>(shape.x_type)] = std::move(kernels);
}

// Sums reach the output's type through that of x; where they differ, fp32 serves both.
const cuda::ExpertKernels* HybridForward::kernels_for(const Layer& layer, const cpu::Batch& batch) const {
  const DType type = batch.x_type == batch.out_type ? batch.x_type : DType::f32;
  return layer.kernels[static_cast<int>(type)].get();
}

// --- a batch

void HybridForward::check_alive() const {
  if (dead_) throw GpuError(dead_->code, std::string("this engine has lost its GPU: ") + dead_->what());
}

void HybridForward::run(int layer, const cpu::Batch& batch, cpu::Observer& observer) {
  check_alive();
  context_->make_current();
  run_parts({.layer = layer, .batch = batch, .observer = observer});
}

void HybridForward::run(int layer, const DeviceBatch& device, cpu::Observer& observer) {
  check_alive();
  context_->make_current();
  Ending ending{device};
  Part whole{.layer = layer,
             .batch = {},
             .observer = observer,
             .x = reinterpret_cast<cuda::DevicePtr>(device.batch.x),
             .out = reinterpret_cast<cuda::DevicePtr>(device.batch.out),
             .ending = &ending,
             .may_free = device.allocates};
  try {
    recovering([&] {
      step_.wait_for(device.order.given());
      whole.batch = inbox_.fetch(device);
      if (device.batch.routing.tokens == 0) tell(&ending);
    });
    run_parts(whole);
  } catch (...) {
    if (!ending.told) spoil(layer, device);
    throw;
  }
}

// In the place of a result that will not come.
void HybridForward::spoil(int layer, const DeviceBatch& device) noexcept {
  const cpu::Batch& batch = device.batch;
  const int64_t bytes = batch.routing.tokens * layers_[layer].view.hidden * size_of(batch.out_type);
  try {
    step_.wait_for(device.order.given());
    step_.spoil(reinterpret_cast<cuda::DevicePtr>(batch.out), bytes);
  } catch (const GpuError&) {
    return;  // the error that is being thrown is the one to tell
  }
  step_.abandon();
}

int64_t HybridForward::reserve(int layer, DType x_type, int64_t tokens) {
  constexpr uint64_t kFewest = 16;  // so that decoding reserves once
  const Layer& l = layers_[layer];
  const cuda::ExpertKernels* kernels = l.kernels[static_cast<int>(x_type)].get();
  if (!kernels) return 0;
  const auto most = static_cast<int64_t>(std::bit_ceil(std::max(static_cast<uint64_t>(tokens), kFewest)));
  try {
    if (!step_.reserve_for_any(*kernels, l.view.num_experts, most)) return 0;
    inbox_.reserve(most * l.view.hidden * size_of(x_type), most * l.top_k);
    caches_.place(layer);
    if (!l.blobs->pinned()) caches_.for_each([](GpuCache& cache) { cache.dma().reserve_staging(); });
  } catch (const GpuOutOfMemory&) {
    return 0;
  }
  return most;
}

std::vector<cuda::StreamView> HybridForward::streams() const {
  std::vector<cuda::StreamView> all;
  for (const cuda::StreamView& stream : step_.streams()) all.push_back(stream);
  all.push_back(inbox_.stream());
  caches_.for_each([&](const GpuCache& cache) { all.push_back(cache.dma().stream()); });
  return all;
}

void HybridForward::tell(Ending* ending) {
  if (!ending) return;
  step_.end(ending->batch.order);
  ending->told = true;
  ending->batch.enqueued();
}

// In several parts where there are many tokens.
void HybridForward::run_parts(const Part& whole) {
  const cpu::Batch& batch = whole.batch;
  const int64_t hidden = layers_[whole.layer].view.hidden, tokens = batch.routing.tokens;
  const int64_t row_bytes =
      std::max<int64_t>(batch.routing.top_k, 1) * hidden * static_cast<int64_t>(sizeof(float));
  const int64_t most = std::max<int64_t>(kMostRowBytes / row_bytes, 1);
  for (int64_t first = 0; first < tokens; first += most) {
    Part part = whole;
    part.batch = batch.tokens(first, std::min(most, tokens - first));
    if (whole.on_device()) {
      const int64_t offset = first * hidden * size_of(batch.x_type);
      part.x += offset;
      part.out += offset;
    }
    if (first + most < tokens) part.ending = nullptr;
    for (bool done = false; !done;) {
      try {
        recovering([&] { run_part(part); });
        done = true;
      } catch (const GpuOutOfMemory&) {
        if ((part.ending && part.ending->told) || !whole.may_free || !caches_.shrink()) throw;
      }
    }
  }
}

void HybridForward::observe(const Layer& layer, const cpu::Batch& batch) {
  cpu::group_by_expert(cpu_kernels_, batch.routing, 0, batch.routing.tokens, layer.view.num_experts, groups_);
  loads_.assign(layer.view.num_experts, 0);
  for (int64_t a = 0; a < groups_.active(); ++a)
    loads_[groups_.experts[a]] = groups_.offsets[a + 1] - groups_.offsets[a];
}

void HybridForward::run_part(Part part) {
  const Layer& layer = layers_[part.layer];
  observe(layer, part.batch);
  const cuda::ExpertKernels* kernels = kernels_for(layer, part.batch);
  // More ids than top_k fit into no list of the kernels: rare, and right on the CPU.
  const bool fits = kernels && part.batch.routing.top_k <= layer.top_k;
  const GpuCaches::Place place = fits ? caches_.place(part.layer) : GpuCaches::Place{};
  if (!place.cache || groups_.active() == 0) {
    books_.add_unplanned();
    run_on_cpu(part);
    return;
  }

  place.cache->pump();
  const std::span<const uint8_t> resident = place.cache->table().resident(place.row);
  for (const int32_t expert : groups_.experts)
    ++(resident[expert] != 0 ? place.cache->stats.hits : place.cache->stats.misses);
  const Assignment& plan = planner_.plan(loads_, resident, layer.view.inter, layer.cost);
  if (plan.gpu.empty()) {
    const CpuInterval cpu = run_on_cpu(part);
    books_.add(booked(part, plan), cpu);
  } else {
    run_on_both(part, {.cache = *place.cache,
                       .row = place.row,
                       .blobs = *layer.blobs,
                       .kernels = *kernels,
                       .groups = groups_,
                       .plan = plan,
                       .tokens = part.batch.routing.tokens,
                       .x = part.x,
                       .out = part.out,
                       .timed = gpu_steps_++ % options_.time_every == 0});
  }
  place.cache->values(place.row).observe(loads_, {});
  ahead_.ran(part.layer, loads_, us_between(created_, Clock::now()));
  if (options_.history) ahead_.start(part.layer, 0, 0);
}

BookedStep HybridForward::booked(const Part& part, const Assignment& plan) {
  const Layer& layer = layers_[part.layer];
  return {.layer = part.layer,
          .tokens = part.batch.routing.tokens,
          .groups = groups_,
          .loads = loads_,
          .plan = plan,
          .inter = layer.view.inter,
          .cost = layer.cost};
}

CpuInterval HybridForward::run_on_cpu(const Part& part) {
  const cpu::Batch& batch = part.batch;
  if (part.on_device()) {
    inbox_.start_x();
    inbox_.wait_for_x();
  }
  CpuInterval interval{Clock::now(), {}};
  cpu_.run(layers_[part.layer].view, batch, part.observer);
  interval.end = Clock::now();
  if (!part.on_device()) return interval;
  step_.send(part.out, batch.out, batch.routing.tokens * batch.out_stride * size_of(batch.out_type));
  tell(part.ending);
  step_.synchronize();  // what is sent from is used again
  return interval;
}

void HybridForward::run_on_both(const Part& part, const StepInput& step) {
  const cpu::Batch& batch = part.batch;
  const cuda::CompiledKernels& shape = step.kernels.shape();
  step_.place(step);
  step_.reserve(step);
  if (!part.on_device())
    convert_rows(batch.x, batch.x_type, batch.x_stride, step_.x(), shape.x_type, shape.hidden, step.tokens,
                 shape.hidden);
  else if (step.plan.on_cpu)
    inbox_.start_x();
  step_.submit(step);
  const DmaStats& dma = step.cache.dma().stats();
  const int64_t prefetched_before = dma.prefetched_bytes;
  const double busy_us = planner_.copies_end_us();
  ahead_.start(part.layer, busy_us, std::max(step.plan.makespan_us - busy_us, 0.0));
  CpuInterval cpu{Clock::now(), {}};
  if (step.plan.on_cpu) run_cpu_share(part, step);
  cpu.end = Clock::now();
  step_.finish(step);
  tell(part.ending);
  step_.join(step, [&] {
    step.cache.pump();
    return !step.cache.dma().idle();
  });
  if (!part.on_device())
    convert_rows(step_.out(), shape.x_type, shape.hidden, batch.out, batch.out_type, batch.out_stride,
                 step.tokens, shape.hidden);
  if (step.timed)
    books_.add(booked(part, step.plan), cpu, step_, dma.prefetched_bytes - prefetched_before,
               step.cache.slot_bytes());
  else
    books_.add_untimed();
  part.observer.on_groups(groups_);
  part.observer.on_spans({}, step.tokens);
}

void HybridForward::run_cpu_share(const Part& part, const StepInput& step) {
  cpu::LayerView view = layers_[part.layer].view;
  view.share = step.plan.cpu_share.data();
  cpu::Batch batch = part.batch;
  batch.out = step_.cpu_sums();
  batch.out_type = DType::f32;
  batch.out_stride = view.hidden;
  ShareObserver observer(part.observer);
  if (part.on_device()) inbox_.wait_for_x();
  cpu_.run(view, batch, observer);
}

// On the team where there is enough to do.
void HybridForward::convert_rows(const void* from, DType from_type, int64_t from_stride, void* to,
                                 DType to_type, int64_t to_stride, int64_t tokens, int64_t columns) const {
  constexpr int64_t kBytesAlone = 1 << 20;  // about 50 us, what waking a team costs at worst (heuristic)
  const auto rows = [&](int64_t begin, int64_t end) noexcept {
    for (int64_t t = begin; t < end; ++t)
      cpu_kernels_.convert(offset(from, t * from_stride * size_of(from_type)), from_type,
                           static_cast<char*>(to) + t * to_stride * size_of(to_type), to_type, columns);
  };
  if (tokens * columns * size_of(from_type) <= kBytesAlone) return rows(0, tokens);
  cpu_.team().run([&](cpu::Member me) noexcept {
    rows(tokens * me.thread / me.size, tokens * (me.thread + 1) / me.size);
  });
}

// --- beside the batches

void HybridForward::keep(int layer, std::span<const int32_t> experts, bool kept) {
  if (dead_ || !caches_.made()) return;  // the first batch makes them
  const GpuCaches::Place place = caches_.place(layer);
  if (place.cache) place.cache->keep(place.row, experts, kept);
}

void HybridForward::hint(int layer, std::span<const int32_t> loads, std::span<const int32_t> ranks,
                         int32_t distance) {
  check_alive();
  ahead_.hint(layer, loads, ranks, distance);
}

void HybridForward::warm_start(int layer, std::span<const double> shares) {
  ahead_.warm_start(layer, shares);
}

void HybridForward::start() {
  check_alive();
  if (layers_.empty() || !ahead_.has_warm_start()) return;
  context_->make_current();
  recovering([&] {
    caches_.place(0);
    ahead_.fill();
  });
}

bool HybridForward::pump() {
  if (dead_) return false;
  try {
    context_->make_current();
    return ahead_.pump();
  } catch (const GpuError& error) {
    recover(&error);
    return false;
  }
}

void HybridForward::recover(const GpuError* cause) noexcept {
  if (cause && cuda::is_sticky(cause->code) && !dead_) dead_.emplace(*cause);
  step_.abandon();
  inbox_.abandon();
  caches_.for_each([](GpuCache& cache) { cache.reset(); });
}

HybridStats HybridForward::stats() const {
  HybridStats s;
  s.work = books_.sums();
  caches_.for_each([&](const GpuCache& cache) {
    const CacheTable& table = cache.table();
    s.slots += table.slots();
    s.resident += table.count(SlotState::resident) + table.count(SlotState::in_use);
    s.cache_bytes += table.slots() * cache.slot_bytes();
  });
  s.workspace_bytes = step_.device_bytes();
  s.shrunk = caches_.times_shrunk();
  s.warm_copies = ahead_.warm_copies();
  s.cache = caches_.stats();
  s.dma = caches_.dma_stats();
  s.predictions = ahead_.predictions();
  return s;
}

}  // namespace moerun
