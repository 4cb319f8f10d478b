#include "cuda/driver_probe.h"

#include "cuda/driver_table.h"
#include "src/error.h"

namespace moerun::cuda {

GpuProbe probe_gpu() {
  GpuProbe probe;
  probe.library = driver_library();
  try {
    const Driver driver = open_driver();
    probe.driver_version = driver->version();
    const int count = count_devices(*driver);
    if (count == 0) throw GpuUnavailable("the CUDA driver is there, but it shows no device; see nvidia-smi");
    for (int index = 0; index < count; ++index) probe.devices.push_back(describe_device(*driver, index));
  } catch (const GpuUnavailable& unavailable) {
    probe.reason = unavailable.what();
  } catch (const GpuError& error) {
    probe.reason = error.what();
    probe.devices.clear();
  }
  return probe;
}

}  // namespace moerun::cuda
