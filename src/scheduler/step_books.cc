#include "src/scheduler/step_books.h"

#include <algorithm>

namespace moerun {
namespace {

using cpu::Clock;

constexpr double kRefreshRate = 0.1;  // of the cost model: a memory of about ten steps (heuristic)

Clock::time_point after(Clock::time_point begin, double us) {
  return begin + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double, std::micro>(us));
}

// What the cost model says of the share that each side was given.
struct Planned {
  double cpu_us, gpu_us;
};

Planned planned(const BookedStep& step) {
  Planned p{step.cost.cpu_first_us, 0};
  for (const int32_t expert : step.groups.experts) {
    const double share = step.plan.cpu_share[expert] / static_cast<double>(step.inter);
    p.cpu_us += share * step.cost.cpu_us(step.loads[expert]);
    p.gpu_us += (1 - share) * step.cost.gpu_us(step.loads[expert]);
    if (share == 0 || share == 1) continue;
    p.cpu_us += step.cost.cpu_part_us;
    p.gpu_us += step.cost.gpu_part_us;
  }
  return p;
}

double length_us(const DeviceInterval& i) {
  return i.end_us - i.begin_us;
}

}  // namespace

void StepBooks::add(const BookedStep& step, const CpuInterval& cpu) {
  record_plan(step, cpu.begin);
  book(step, cpu.us(), {.cpu_us = cpu.us()});
  step.cost = refresh(step.cost, policy::Resource::cpu, planned(step).cpu_us, cpu.us(), kRefreshRate);
}

void StepBooks::add(const BookedStep& step, const CpuInterval& cpu, const DeviceStep& device,
                    int64_t prefetched_bytes, int64_t slot_bytes) {
  record(step, device);
  record_plan(step, device.began());
  policy::CostModel& cost = step.cost;
  const double cpu_us = step.plan.on_cpu ? cpu.us() : 0;
  double end_us =
      step.plan.on_cpu ? std::chrono::duration<double, std::micro>(cpu.end - device.began()).count() : 0;
  double gpu_us = 0, copies_us = 0, whole_us = 0;
  int64_t whole_copies = 0;
  for (const DeviceInterval& launch : device.launches()) {
    gpu_us += length_us(launch);
    end_us = std::max(end_us, launch.end_us);
  }
  for (const DeviceInterval& copy : device.copies()) {
    copies_us += length_us(copy);
    if (!copy.whole) continue;
    ++whole_copies;
    whole_us += length_us(copy);
  }
  copies_us += cost.copy_us * static_cast<double>(prefetched_bytes) / static_cast<double>(slot_bytes);
  ++sums_.gpu_steps;
  book(step, end_us, {cpu_us, gpu_us, copies_us});

  const Planned p = planned(step);
  cost = refresh(cost, policy::Resource::gpu, p.gpu_us, gpu_us, kRefreshRate);
  if (whole_copies > 0)
    cost = refresh(cost, policy::Resource::copy, static_cast<double>(whole_copies) * cost.copy_us, whole_us,
                   kRefreshRate);
  if (step.plan.on_cpu) cost = refresh(cost, policy::Resource::cpu, p.cpu_us, cpu_us, kRefreshRate);
}

void StepBooks::book(const BookedStep& step, double makespan_us, const Busy& busy) {
  constexpr double kSeconds = 1e-6;
  ++sums_.steps;
  sums_.planned_seconds += step.plan.makespan_us * kSeconds;
  sums_.observed_seconds += makespan_us * kSeconds;
  const auto add = [&](double Resources::* who, double busy_us) {
    const double within_us = std::min(busy_us, makespan_us);  // a prefetch may go on behind the step's end
    sums_.busy_seconds.*who += within_us * kSeconds;
    sums_.idle_seconds.*who += (makespan_us - within_us) * kSeconds;
  };
  add(&Resources::cpu, busy.cpu_us);
  add(&Resources::gpu, busy.gpu_us);
  add(&Resources::copies, busy.copies_us);
}

// --- timeline

void StepBooks::record(const BookedStep& step, const DeviceStep& device) {
  const auto event = [&](const char* name, Lane::Kind lane, const DeviceInterval& i) {
    trace_.record({.name = name,
                   .lane = {lane},
                   .layer = step.layer,
                   .tokens = step.tokens,
                   .begin = after(device.began(), i.begin_us),
                   .end = after(device.began(), i.end_us)});
  };
  for (const DeviceInterval& launch : device.launches()) event("experts", Lane::gpu, launch);
  for (const DeviceInterval& copy : device.copies()) event("expert copy", Lane::h2d, copy);
  if (device.way_back()) event("result", Lane::d2h, *device.way_back());
}

// How long the planner thought that this would take, to be held against what stands below it.
void StepBooks::record_plan(const BookedStep& step, Clock::time_point begin) {
  trace_.record({.name = "planned",
                 .lane = {Lane::plan},
                 .layer = step.layer,
                 .tokens = step.tokens,
                 .begin = begin,
                 .end = after(begin, step.plan.makespan_us)});
}

}  // namespace moerun
