// Whether this machine has a CUDA driver and devices, and if not, why not. For doctor and for choosing a
// device; creates no context and keeps nothing open.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace moerun::cuda {

struct GpuDevice {
  std::string name;
  int compute_major = 0, compute_minor = 0;
  int64_t memory_bytes = 0;  // total
};

struct GpuProbe {
  std::string library;  // what was opened, or could not be
  int driver_version =
      0;  // newest CUDA version that the driver serves, 1000 * major + 10 * minor; 0 if unknown
  std::vector<GpuDevice> devices;
  std::string reason;  // why there are no devices; empty if there are
};

// Opens libcuda.so.1, or what the environment variable MOERUN_LIBCUDA names. Having no GPU is a result, not
// an error.
GpuProbe probe_gpu();

}  // namespace moerun::cuda
