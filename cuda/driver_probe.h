// Whether this machine has a CUDA driver and devices, and if not, why not. For doctor and for choosing a
// device; creates no context and keeps nothing open.
#pragma once
#include <string>
#include <vector>

#include "cuda/device_info.h"

namespace moerun::cuda {

struct GpuProbe {
  std::string library;     // what was opened, or could not be
  int driver_version = 0;  // newest CUDA that the driver serves, 1000 * major + 10 * minor; 0 if unknown
  std::vector<DeviceInfo> devices;
  std::string reason;  // why there are no devices; empty if there are
};

// Opens libcuda.so.1, or what the environment variable MOERUN_LIBCUDA names. Having no GPU is a result, not
// an error.
GpuProbe probe_gpu();

}  // namespace moerun::cuda
