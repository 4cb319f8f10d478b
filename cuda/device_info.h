// What the driver tells of one device. Needs no context.
#pragma once
#include <cstdint>
#include <string>

#include "cuda/driver_table.h"

namespace moerun::cuda {

struct DeviceInfo {
  int index = 0;
  std::string name;
  int compute_major = 0, compute_minor = 0;
  int64_t memory_bytes = 0;  // total
  int multiprocessors = 0;
  int64_t shared_bytes_per_block = 0;  // the most that a kernel may ask for ("opt-in")
  int64_t l2_bytes = 0;
  double memory_gb_per_s = 0;  // from clock and bus width; 0 where the driver does not tell the clock
  int copy_engines = 0;        // copies that run at once, beside kernels
  bool can_register = false;   // host memory that was not allocated by the driver can be pinned
  bool can_register_read_only = false;
  std::string pci_bus_id;  // "0000:3b:00.0"; under /sys/bus/pci/devices its link's speed and width are told
};

int count_devices(const DriverTable& driver);

// `index` counts from 0 in the driver's order (CUDA_VISIBLE_DEVICES). Throws GpuUnavailable if there is none.
DeviceInfo describe_device(const DriverTable& driver, int index);

}  // namespace moerun::cuda
