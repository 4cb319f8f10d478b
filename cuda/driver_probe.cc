#include "cuda/driver_probe.h"

#include <dlfcn.h>

#include <cstdlib>
#include <memory>
#include <stdexcept>

namespace moerun::cuda {
namespace {

// From NVIDIA's driver API reference: CUresult, CUdevice and CUdevice_attribute are ints.
using Result = int;
using Device = int;
constexpr Result kSuccess = 0;
constexpr int kComputeMajor = 75, kComputeMinor = 76;

struct CloseLibrary {
  void operator()(void* library) const { dlclose(library); }
};
using Library = std::unique_ptr<void, CloseLibrary>;

// A reason to stop looking; turned into GpuProbe::reason.
struct Unusable : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class Function>
Function* find(const Library& library, const char* symbol) {
  if (void* address = dlsym(library.get(), symbol)) return reinterpret_cast<Function*>(address);
  throw Unusable(std::string("the library lacks ") + symbol +
                 "; it is not a CUDA driver, or older than CUDA 6");
}

void check(const Library& library, Result result, const char* call) {
  if (result == kSuccess) return;
  const char* name = nullptr;
  find<Result(Result, const char**)>(library, "cuGetErrorName")(result, &name);
  throw Unusable(std::string("the driver is there, but ") + call + " returned " +
                 (name ? name : "an unknown error") + " (" + std::to_string(result) + ")");
}

GpuDevice describe(const Library& library, int index) {
  const auto attribute = find<Result(int*, int, Device)>(library, "cuDeviceGetAttribute");
  GpuDevice gpu;
  Device device = 0;
  char name[256] = {};
  size_t bytes = 0;
  check(library, find<Result(Device*, int)>(library, "cuDeviceGet")(&device, index), "cuDeviceGet");
  check(library, find<Result(char*, int, Device)>(library, "cuDeviceGetName")(name, sizeof(name) - 1, device),
        "cuDeviceGetName");
  check(library, attribute(&gpu.compute_major, kComputeMajor, device), "cuDeviceGetAttribute");
  check(library, attribute(&gpu.compute_minor, kComputeMinor, device), "cuDeviceGetAttribute");
  check(library, find<Result(size_t*, Device)>(library, "cuDeviceTotalMem_v2")(&bytes, device),
        "cuDeviceTotalMem");
  gpu.name = name;
  gpu.memory_bytes = static_cast<int64_t>(bytes);
  return gpu;
}

void look(GpuProbe& probe) {
  const Library library(dlopen(probe.library.c_str(), RTLD_NOW | RTLD_LOCAL));
  if (!library) throw Unusable(std::string("no CUDA driver: ") + dlerror());
  check(library, find<Result(unsigned)>(library, "cuInit")(0), "cuInit");
  check(library, find<Result(int*)>(library, "cuDriverGetVersion")(&probe.driver_version),
        "cuDriverGetVersion");
  int count = 0;
  check(library, find<Result(int*)>(library, "cuDeviceGetCount")(&count), "cuDeviceGetCount");
  for (int index = 0; index < count; ++index) probe.devices.push_back(describe(library, index));
  if (count == 0) throw Unusable("the driver is there, but it shows no device");
}

}  // namespace

GpuProbe probe_gpu() {
  const char* override_path = std::getenv("MOERUN_LIBCUDA");
  GpuProbe probe;
  probe.library = override_path ? override_path : "libcuda.so.1";
  try {
    look(probe);
  } catch (const Unusable& unusable) {
    probe.devices.clear();
    probe.reason = unusable.what();
  }
  return probe;
}

}  // namespace moerun::cuda
