// What each batch of a layer took, once it is over: booked into sums for the statistics, into the timeline,
// and into the cost model that plans the next one. Called by HybridForward, on the scheduler's thread.
#pragma once
#include <cstdint>
#include <span>

#include "cpu/grouping.h"
#include "cpu/moe_forward.h"
#include "src/policy/cost_model.h"
#include "src/scheduler/device_step.h"
#include "src/scheduler/planner.h"
#include "src/trace/trace.h"

namespace moerun {

// Who is busy and idle, in the order in which statistics name them.
struct Resources {
  double cpu = 0, gpu = 0, copies = 0;
};

struct StepSums {
  int64_t steps = 0, gpu_steps = 0;  // batches of a layer; those with a share on the GPU
  // Makespans: from the step's begin until its last expert is done, as planned and as it was.
  double planned_seconds = 0, observed_seconds = 0;
  // Within the observed makespans. Copies are demanded ones, as timed, and prefetched bytes at their speed.
  Resources busy_seconds, idle_seconds;
};

// When the CPU ran its share.
struct CpuInterval {
  cpu::Clock::time_point begin, end;

  double us() const { return std::chrono::duration<double, std::micro>(end - begin).count(); }
};

// One batch of one layer. `groups` and `loads` [E]: its tokens by expert.
struct BookedStep {
  int layer;
  int64_t tokens;
  const cpu::Groups& groups;
  std::span<const int32_t> loads;
  const Assignment& plan;
  int64_t inter;
  policy::CostModel& cost;  // is refreshed
};

class StepBooks {
 public:
  explicit StepBooks(Trace& trace) : trace_(trace) {}

  // A batch that nobody planned: there is no cache, or nothing to do.
  void add_unplanned() { ++sums_.steps; }
  // All of it ran on the CPU.
  void add(const BookedStep& step, const CpuInterval& cpu);
  // After step.join(). `prefetched_bytes` went over the bus meanwhile; an expert has `slot_bytes`.
  void add(const BookedStep& step, const CpuInterval& cpu, const DeviceStep& device, int64_t prefetched_bytes,
           int64_t slot_bytes);

  const StepSums& sums() const { return sums_; }

 private:
  struct Busy {
    double cpu_us = 0, gpu_us = 0, copies_us = 0;
  };
  void record(const BookedStep& step, const DeviceStep& device);
  void record_plan(const BookedStep& step, cpu::Clock::time_point begin);
  void book(const BookedStep& step, double makespan_us, const Busy& busy);

  Trace& trace_;
  StepSums sums_;
};

}  // namespace moerun
