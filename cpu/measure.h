// Measures what this machine can do at most with the kernels' own loads and multiply-adds: the read bandwidth
// of its memory and its dot-product peaks. Called by doctor and the benches.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/kernel_table.h"
#include "cpu/team.h"

namespace moerun::cpu {

// One measured rate. Neighbours on the machine only ever slow a repeat down, so `best` is nearest to the
// machine's own limit, and a wide spread says that the machine was busy.
struct Figure {
  double median = 0, best = 0;
  double spread = 0;  // distance between the quartiles, as a fraction of the median
  int repeats = 0;
};

struct DotPeak {
  DotType type = DotType::f32;
  Figure gflop_per_s;  // a multiply-add is two operations
};

struct Limits {
  int threads = 1;
  int64_t buffer_bytes = 0;  // read over and over, each thread its own share
  Figure read_gb_per_s;      // 1 GB = 1e9 bytes
  std::vector<DotPeak> dot;  // of what the kernels multiply
};

struct MeasureOptions {
  int64_t buffer_bytes = int64_t{512} << 20;  // should be several times the last-level cache
  double seconds = 1.0;                       // of each measurement, all its repeats together
  int repeats = 9;
};

// Measures one slice of time a call, with every thread of `team`; the benches put slices between their own
// measurements. Not thread-safe.
class LimitMeter {
 public:
  // Throws InvalidArgument if the buffer is too small for the team, InvalidState if there is no memory.
  LimitMeter(const KernelTable& kernels, Team team, int64_t buffer_bytes);
  ~LimitMeter();

  int threads() const { return team_.size(); }
  // What the kernels multiply: fp32, and where the row can, bf16 and int8.
  std::vector<DotType> dot_types() const;
  // What many tokens of bf16 with weights of a format are multiplied as.
  DotType dot_type(WeightFormat format) const;
  // GB/s of reading the buffer in order; a call goes on where the last one stopped.
  double read(double seconds);
  // GFLOP/s in registers; `type` is one of dot_types().
  double dot(DotType type, double seconds);

 private:
  struct Buffer;
  struct Lane;
  template <class Unit>
  double rate(const Unit& unit, double seconds);

  const KernelTable& kernels_;
  const Team team_;
  std::unique_ptr<Buffer> buffer_;
  std::vector<Lane> lanes_;
};

// Measures with every thread of `team`. The measurements take turns, one repeat each, so that a disturbance
// of a second falls on all of them. Throws InvalidArgument on options that make no sense, InvalidState if
// there is no memory.
Limits measure_limits(const KernelTable& kernels, Team team, const MeasureOptions& options);

}  // namespace moerun::cpu
