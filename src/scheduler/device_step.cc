#include "src/scheduler/device_step.h"

#include <algorithm>
#include <span>

#include "src/error.h"

namespace moerun {

DeviceStep::DeviceStep(const cuda::ContextPtr& context)
    : compute_(context),
      results_(context),
      fences_(context),
      uploaded_(context),
      combined_(context, {.timing = true}),
      begin_(context, {.timing = true}),
      returned_{cuda::Event(context, {.timing = true}), cuda::Event(context, {.timing = true})},
      context_(context),
      buffers_(context) {}

// --- place

// Lets go of the slots that the earliest launch reads, so that later experts of this step may have them. The
// first `placed` experts have slots.
bool DeviceStep::retire_one_launch(const StepInput& in, size_t placed) {
  if (retired_ == placed) return false;
  const int64_t fence = placed_[retired_].fence;
  for (; retired_ < placed && placed_[retired_].fence == fence; ++retired_) {
    in.cache.table().unpin(placed_[retired_].slot);
    placed_[retired_].pinned = false;
  }
  return true;
}

int32_t DeviceStep::find_slot(const StepInput& in, int32_t expert, size_t placed) {
  int32_t slot = in.cache.acquire(in.row, expert);
  while (slot < 0 && retire_one_launch(in, placed)) slot = in.cache.acquire(in.row, expert);
  if (slot < 0) {
    in.cache.cancel_prefetches();
    in.cache.let_go();
    slot = in.cache.acquire(in.row, expert);
  }
  if (slot < 0) throw InvalidState("the GPU's cache has no slot for an expert; raise gpu_cache");
  return slot;
}

void DeviceStep::place(const StepInput& in) {
  CacheTable& table = in.cache.table();
  placed_.clear();
  residents_ = retired_ = copied_ = 0;
  const int64_t first = fences_.recorded() + 1;
  const std::span<const uint8_t> resident = table.resident(in.row);
  for (const int32_t expert : in.plan.gpu)
    if (resident[expert] != 0)
      placed_.push_back({expert, table.slot_of(in.row, expert), first, 0, Placed::Source::resident});
  residents_ = placed_.size();
  const int64_t base = residents_ > 0 ? first : first - 1;
  for (const int32_t expert : in.plan.gpu)
    if (resident[expert] == 0) placed_.push_back({expert, -1, 0, 0, Placed::Source::demanded});
  for (size_t i = 0; i < residents_; ++i) in.cache.read_by(placed_[i].slot, placed_[i].fence);
  for (size_t i = residents_; i < placed_.size(); ++i) {
    Placed& p = placed_[i];
    p.fence = base + 1 + static_cast<int64_t>(i - residents_);
    p.slot = table.slot_of(in.row, p.expert);
    if (p.slot >= 0) {
      p.source = Placed::Source::prefetched;
      in.cache.dma().claim(p.slot);
    } else {
      p.slot = find_slot(in, p.expert, i);
    }
    p.after = in.cache.last_read(p.slot);
    table.loaded(p.slot);  // for all that comes later on the compute stream
    in.cache.read_by(p.slot, p.fence);
  }
  make_lists(in);
}

void DeviceStep::make_lists(const StepInput& in) {
  group_of_.assign(in.plan.cpu_share.size(), -1);
  for (size_t a = 0; a < in.groups.experts.size(); ++a)
    group_of_[in.groups.experts[a]] = static_cast<int32_t>(a);
  lists_.clear(in.tokens, in.kernels.shape().top_k);
  if (residents_ > 0) add_launch(in, 0, residents_);
  for (size_t i = residents_; i < placed_.size(); ++i) add_launch(in, i, 1);
  lists_.finish(in.groups);
}

void DeviceStep::add_launch(const StepInput& in, size_t first, size_t count) {
  loads_.clear();
  launched_.clear();
  for (size_t i = first; i < first + count; ++i) {
    const Placed& p = placed_[i];
    const int32_t group = group_of_[p.expert];
    loads_.push_back(in.groups.offsets[group + 1] - in.groups.offsets[group]);
    launched_.push_back({.group = group,
                         .slot = p.slot,
                         .inter_begin = in.plan.cpu_share[p.expert],
                         .inter_end = static_cast<int32_t>(in.kernels.shape().inter)});
  }
  lists_.add(in.groups, launched_, in.kernels.choose(loads_));
}

// --- reserve, submit

void DeviceStep::reserve(const StepInput& in) {
  const cuda::CompiledKernels& shape = in.kernels.shape();
  const int64_t x_bytes = in.tokens * shape.hidden * size_of(shape.x_type);
  constexpr int64_t kFloat = sizeof(float);
  buffers_.reserve({.x = in.x ? 0 : x_bytes,
                    .lists = lists_.layout().bytes,
                    .h = lists_.pairs() * shape.h_stride * size_of(shape.compute_type),
                    .partial = lists_.split_pairs() * 2 * shape.h_stride * kFloat,
                    .y = lists_.rows() * shape.y_stride * kFloat,
                    .cpu = in.tokens * shape.hidden * kFloat,
                    .out = in.out ? 0 : x_bytes});
  while (in.timed && timers_.size() < lists_.launches().size())
    timers_.push_back({cuda::Event(context_, {.timing = true}), cuda::Event(context_, {.timing = true})});
}

bool DeviceStep::reserve_for_any(const cuda::ExpertKernels& kernels, int64_t experts, int64_t tokens) {
  const cuda::CompiledKernels& shape = kernels.shape();
  const StepLists::Most most = StepLists::most(kernels, experts, tokens);
  const int64_t x_bytes = tokens * shape.hidden * size_of(shape.x_type);
  constexpr int64_t kFloat = sizeof(float);
  const StepSizes sizes{.x = x_bytes,
                        .lists = most.list_bytes,
                        .h = most.pairs * shape.h_stride * size_of(shape.compute_type),
                        .partial = most.split_pairs * 2 * shape.h_stride * kFloat,
                        .y = most.rows * shape.y_stride * kFloat,
                        .cpu = tokens * shape.hidden * kFloat,
                        .out = x_bytes};
  if (sizes.sum() > kMostReserved) return false;
  buffers_.reserve(sizes);
  return true;
}

// Starts the copies whose slots are read by nothing that has yet to be launched.
void DeviceStep::copy_what_may(const StepInput& in) {
  DmaQueue& dma = in.cache.dma();
  for (; residents_ + copied_ < placed_.size(); ++copied_) {
    const Placed& p = placed_[residents_ + copied_];
    if (p.after > fences_.recorded()) return;
    if (p.source == Placed::Source::prefetched) {
      dma.promote(p.slot);
    } else {
      fences_.make_wait(dma.stream(), p.after);
      dma.demand(in.cache.copy_of(p.slot, in.blobs.blob(p.expert), in.blobs.pinned()));
    }
  }
}

void DeviceStep::submit(const StepInput& in) {
  const cuda::CompiledKernels& shape = in.kernels.shape();
  const DeviceBuffers::Device& d = buffers_.device();
  const StepLists::Layout lists = lists_.layout();
  const cuda::Stream& copies = in.cache.dma().stream();
  began_ = std::chrono::steady_clock::now();
  if (in.timed) compute_.record(begin_);
  in.cache.dma().time_copies(in.timed);
  lists_.write(buffers_.host().lists);
  copies.copy_to_device(d.lists, buffers_.host().lists, lists.bytes);
  if (!in.x) copies.copy_to_device(d.x, buffers_.host().x, in.tokens * shape.hidden * size_of(shape.x_type));
  copies.record(uploaded_);
  compute_.wait(uploaded_);
  const std::span<const StepLists::Launch> launches = lists_.launches();
  for (size_t i = 0; i < launches.size(); ++i) {
    copy_what_may(in);
    const bool of_residents = i == 0 && residents_ > 0;
    if (!of_residents) in.cache.dma().make_wait(compute_, placed_[residents_ + i - (residents_ > 0)].slot);
    if (in.timed) compute_.record(timers_[i].begin);
    in.kernels.launch(compute_, *launches[i].regime,
                      {.x = in.x ? in.x : d.x,
                       .slab = in.cache.slab(),
                       .h = d.h,
                       .partial = d.partial,
                       .y = d.y,
                       .tiles = d.lists + lists.tiles + launches[i].first_tile * sizeof(cuda::Tile),
                       .pair_token = d.lists + lists.pair_token,
                       .pair_weight = d.lists + lists.pair_weight},
                      launches[i].tiles);
    if (in.timed) compute_.record(timers_[i].end);
    fences_.record(compute_);
  }
}

// --- finish, join

void DeviceStep::finish(const StepInput& in) {
  const cuda::CompiledKernels& shape = in.kernels.shape();
  const DeviceBuffers::Device& d = buffers_.device();
  if (in.plan.on_cpu)
    compute_.copy_to_device(d.cpu, buffers_.host().cpu, in.tokens * shape.hidden * sizeof(float));
  in.kernels.combine(compute_, d.y, d.lists + lists_.layout().token_rows, in.plan.on_cpu ? d.cpu : 0,
                     in.out ? in.out : d.out, in.tokens);
  compute_.record(combined_);
  if (in.out) return;
  results_.wait(combined_);
  if (in.timed) results_.record(returned_.begin);
  results_.copy_to_host(buffers_.host().out, d.out, in.tokens * shape.hidden * size_of(shape.x_type));
  results_.record(returned_.end);
}

void DeviceStep::settle(const StepInput& in) {
  fences_.all_passed();
  in.cache.settle();
  const DmaQueue& dma = in.cache.dma();
  launch_times_.clear();
  copy_times_.clear();
  way_back_.reset();
  for (const Placed& p : placed_)
    if (p.pinned) in.cache.table().unpin(p.slot);
  if (!in.timed) return;
  for (size_t i = 0; i < lists_.launches().size(); ++i)
    launch_times_.push_back({since_begin(timers_[i].begin), since_begin(timers_[i].end)});
  for (size_t i = residents_; i < placed_.size(); ++i)
    copy_times_.push_back({since_begin(dma.begin_of(placed_[i].slot)),
                           since_begin(dma.end_of(placed_[i].slot)),
                           placed_[i].source == Placed::Source::demanded});
  if (!in.out) way_back_.emplace(DeviceInterval{since_begin(returned_.begin), since_begin(returned_.end)});
}

void DeviceStep::abandon() noexcept {
  wait_until_idle(*context_, compute_);
  wait_until_idle(*context_, results_);
  fences_.all_passed();
}

}  // namespace moerun
