// What running an expert costs: on the CPU, on the GPU, and to copy (HybriMoE section IV-A). A value; the
// engine calibrates one per machine, shape and format, a replay profile states one, and every policy takes it
// as an argument.
#pragma once
#include <cstdint>
#include <span>

namespace moerun::policy {

struct CostModel {
  double cpu_first_us = 0;   // once for a set of experts on the CPU: waking the team, cold caches
  double cpu_expert_us = 0;  // each expert: reading its weights
  double cpu_token_us = 0;   // each token of an expert
  double gpu_expert_us = 0;
  double gpu_token_us = 0;
  double copy_us = 0;  // one expert over PCIe; copies go one after another
  // A divided expert: each side takes its share of the expert's time, and this beside it (its own launch, a
  // second set of work items).
  double cpu_part_us = 0;
  double gpu_part_us = 0;

  double cpu_us(int64_t load) const { return cpu_expert_us + static_cast<double>(load) * cpu_token_us; }
  double gpu_us(int64_t load) const { return gpu_expert_us + static_cast<double>(load) * gpu_token_us; }
};

// Throws InvalidArgument when a figure is negative or not finite.
void check(const CostModel& cost);

// One timed run: `experts` experts with `tokens` tokens altogether, on one side; of each, `share` of its
// intermediate dimension, in (0, 1].
struct ComputePoint {
  int64_t experts;
  int64_t tokens;
  double share;
  double us;
};

// One timed copy.
struct CopyPoint {
  int64_t bytes;
  double us;
};

struct Calibration {
  CostModel cost;
  double copy_fixed_us = 0;  // a copy of b bytes takes copy_fixed_us + b * copy_byte_us
  double copy_byte_us = 0;
  // Root mean square of (fit - measured) / measured, per resource.
  double cpu_residual = 0;
  double gpu_residual = 0;
  double copy_residual = 0;
};

// Least squares on relative errors with coefficients >= 0, so that a short run counts as much as a long one
// and a noisy one cannot make work look free. `expert_bytes` turns the affine copy time into copy_us. An
// empty `gpu` and `copies` (a machine without a GPU) leave those figures 0, and points without a share below
// 1 the *_part_us. Throws InvalidArgument when the points cannot determine the coefficients.
Calibration fit(std::span<const ComputePoint> cpu, std::span<const ComputePoint> gpu,
                std::span<const CopyPoint> copies, int64_t expert_bytes);

enum class Resource : uint8_t { cpu, gpu, copy };

// Online refresh: moves all figures of one resource towards what was observed, by an exponential average with
// weight `rate` in (0, 1]. One observation counts for at most a factor of kMaxStep, so that a preempted step
// is forgotten.
inline constexpr double kMaxStep = 2.0;  // heuristic
CostModel refresh(CostModel cost, Resource resource, double planned_us, double observed_us, double rate);

}  // namespace moerun::policy
