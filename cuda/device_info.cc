#include "cuda/device_info.h"

#include <cctype>

#include "src/error.h"

namespace moerun::cuda {
namespace {

constexpr const char* kDoing = "asking for the properties of a device";

int attribute(const DriverTable& driver, DeviceOrdinal device, int which) {
  int value = 0;
  driver.call(driver.DeviceGetAttribute, kDoing, &value, which, device);
  return value;
}

// An attribute that drivers may not know.
int attribute_or_zero(const DriverTable& driver, DeviceOrdinal device, int which) {
  int value = 0;
  return driver.DeviceGetAttribute(&value, which, device) == kSuccess ? value : 0;
}

DeviceOrdinal find_device(const DriverTable& driver, int index) {
  const int count = count_devices(driver);
  if (index < 0 || index >= count)
    throw GpuUnavailable("there is no CUDA device " + std::to_string(index) + ": the driver shows " +
                         std::to_string(count) +
                         "; choose a smaller number, or see nvidia-smi and CUDA_VISIBLE_DEVICES");
  DeviceOrdinal device = 0;
  driver.call(driver.DeviceGet, "choosing a device", &device, index);
  return device;
}

std::string pci_bus_id(const DriverTable& driver, DeviceOrdinal device) {
  char text[32] = {};
  driver.call(driver.DeviceGetPciBusId, kDoing, text, static_cast<int>(sizeof(text)) - 1, device);
  std::string id = text;
  for (char& letter : id) letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
  return id;
}

}  // namespace

int count_devices(const DriverTable& driver) {
  int count = 0;
  driver.call(driver.DeviceGetCount, "counting devices", &count);
  return count;
}

DeviceInfo describe_device(const DriverTable& driver, int index) {
  const DeviceOrdinal device = find_device(driver, index);
  char name[256] = {};
  size_t memory_bytes = 0;
  driver.call(driver.DeviceGetName, kDoing, name, static_cast<int>(sizeof(name)) - 1, device);
  driver.call(driver.DeviceTotalMem, kDoing, &memory_bytes, device);

  DeviceInfo info;
  info.index = index;
  info.name = name;
  info.memory_bytes = static_cast<int64_t>(memory_bytes);
  info.compute_major = attribute(driver, device, kComputeMajor);
  info.compute_minor = attribute(driver, device, kComputeMinor);
  info.multiprocessors = attribute(driver, device, kMultiprocessorCount);
  info.shared_bytes_per_block = attribute(driver, device, kMaxSharedBytesPerBlockOptin);
  info.l2_bytes = attribute(driver, device, kL2CacheBytes);
  info.copy_engines = attribute(driver, device, kAsyncEngineCount);
  info.can_register = attribute(driver, device, kHostRegisterSupported) != 0;
  info.can_register_read_only = attribute_or_zero(driver, device, kReadOnlyHostRegisterSupported) != 0;
  // Double data rate: two transfers a clock.
  const double clock_hz = 1e3 * attribute_or_zero(driver, device, kMemoryClockKhz);
  info.memory_gb_per_s = 2 * clock_hz * attribute_or_zero(driver, device, kMemoryBusWidthBits) / 8 / 1e9;
  info.pci_bus_id = pci_bus_id(driver, device);
  return info;
}

}  // namespace moerun::cuda
