// Version, devices and contexts.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "tests/fakecuda/state.h"

namespace fakecuda {
namespace {

struct Attribute {
  int which;
  int value;
};

// Those of an H100 where no option says otherwise.
int attribute(const Options& o, int which) {
  const Attribute known[] = {
      {kMultiprocessorCount, 132},
      {kMemoryClockKhz, 2619000},
      {kMemoryBusWidthBits, 5120},
      {kL2CacheBytes, 50 << 20},
      {kAsyncEngineCount, 3},
      {kComputeMajor, o.compute / 10},
      {kComputeMinor, o.compute % 10},
      {kMaxSharedBytesPerBlockOptin, o.shared_bytes_per_block()},
      {kHostRegisterSupported, o.can_register},
      {kReadOnlyHostRegisterSupported, o.can_register_read_only},
  };
  const auto* const found =
      std::find_if(std::begin(known), std::end(known), [&](const Attribute& a) { return a.which == which; });
  return found == std::end(known) ? -1 : found->value;
}

bool is_device(DeviceOrdinal device) {
  return device >= 0 && device < State::get().options.devices;
}

struct ErrorName {
  Result code;
  const char* name;
};

constexpr ErrorName kErrorNames[] = {
    {kSuccess, "CUDA_SUCCESS"},
    {kInvalidValue, "CUDA_ERROR_INVALID_VALUE"},
    {kOutOfMemory, "CUDA_ERROR_OUT_OF_MEMORY"},
    {kNoDevice, "CUDA_ERROR_NO_DEVICE"},
    {kInvalidDevice, "CUDA_ERROR_INVALID_DEVICE"},
    {kInvalidImage, "CUDA_ERROR_INVALID_IMAGE"},
    {kInvalidContext, "CUDA_ERROR_INVALID_CONTEXT"},
    {kNoBinaryForGpu, "CUDA_ERROR_NO_BINARY_FOR_GPU"},
    {kInvalidHandle, "CUDA_ERROR_INVALID_HANDLE"},
    {kNotFound, "CUDA_ERROR_NOT_FOUND"},
    {kNotReady, "CUDA_ERROR_NOT_READY"},
    {kIllegalAddress, "CUDA_ERROR_ILLEGAL_ADDRESS"},
    {kHostMemoryAlreadyRegistered, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED"},
    {kHostMemoryNotRegistered, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED"},
    {kMisalignedAddress, "CUDA_ERROR_MISALIGNED_ADDRESS"},
    {kLaunchFailed, "CUDA_ERROR_LAUNCH_FAILED"},
    {kNotSupported, "CUDA_ERROR_NOT_SUPPORTED"},
    {kSystemDriverMismatch, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"},
    {kUnknown, "CUDA_ERROR_UNKNOWN"},
};

}  // namespace

FAKECUDA_API Result cuInit(unsigned) {
  State& state = State::get();
  if (state.contexts() == 0) state.options = read_options();
  FAKECUDA_ENTER(Init);
  return state.options.init_result;
}

FAKECUDA_API Result cuDriverGetVersion(int* version) {
  FAKECUDA_ENTER(DriverGetVersion);
  *version = read_options().driver_version;  // works before cuInit
  return kSuccess;
}

FAKECUDA_API Result cuGetErrorName(Result code, const char** name) {
  for (const ErrorName& known : kErrorNames)
    if (known.code == code) {
      *name = known.name;
      return kSuccess;
    }
  *name = nullptr;
  return kInvalidValue;
}

FAKECUDA_API Result cuDeviceGetCount(int* count) {
  FAKECUDA_ENTER(DeviceGetCount);
  *count = State::get().options.devices;
  return kSuccess;
}

FAKECUDA_API Result cuDeviceGet(DeviceOrdinal* device, int index) {
  FAKECUDA_ENTER(DeviceGet);
  if (!is_device(index)) return kInvalidDevice;
  *device = index;
  return kSuccess;
}

FAKECUDA_API Result cuDeviceGetName(char* name, int bytes, DeviceOrdinal device) {
  FAKECUDA_ENTER(DeviceGetName);
  if (!is_device(device)) return kInvalidDevice;
  std::snprintf(name, static_cast<size_t>(bytes), "Fake device %d", device);
  return kSuccess;
}

FAKECUDA_API Result cuDeviceGetAttribute(int* value, int which, DeviceOrdinal device) {
  FAKECUDA_ENTER(DeviceGetAttribute);
  if (!is_device(device)) return kInvalidDevice;
  *value = attribute(State::get().options, which);
  return *value < 0 ? kInvalidValue : kSuccess;
}

FAKECUDA_API Result cuDeviceGetPCIBusId(char* id, int bytes, DeviceOrdinal device) {
  FAKECUDA_ENTER(DeviceGetPciBusId);
  if (!is_device(device)) return kInvalidDevice;
  std::snprintf(id, static_cast<size_t>(bytes), "FFFF:%02X:00.0", device);
  return kSuccess;
}

FAKECUDA_API Result cuDeviceTotalMem_v2(size_t* bytes, DeviceOrdinal device) {
  FAKECUDA_ENTER(DeviceTotalMem);
  if (!is_device(device)) return kInvalidDevice;
  *bytes = static_cast<size_t>(State::get().options.memory_bytes);
  return kSuccess;
}

FAKECUDA_API Result cuDevicePrimaryCtxRetain(ContextHandle* context, DeviceOrdinal device) {
  FAKECUDA_ENTER(PrimaryCtxRetain);
  return State::get().retain(device, context);
}

FAKECUDA_API Result cuDevicePrimaryCtxRelease_v2(DeviceOrdinal device) {
  const Result injected = State::get().faults.enter(Call::PrimaryCtxRelease);
  const Result released = State::get().release(device);
  return injected != kSuccess ? injected : released;
}

FAKECUDA_API Result cuCtxSetCurrent(ContextHandle context) {
  FAKECUDA_ENTER(CtxSetCurrent);
  std::vector<void*>& stack = context_stack();
  if (context != nullptr && !State::get().is_context(context)) return destroyed_handle(Call::CtxSetCurrent);
  if (!stack.empty()) stack.pop_back();
  if (context != nullptr) stack.push_back(context);
  return kSuccess;
}

FAKECUDA_API Result cuCtxPushCurrent_v2(ContextHandle context) {
  FAKECUDA_ENTER(CtxPushCurrent);
  if (!State::get().is_context(context)) return destroyed_handle(Call::CtxPushCurrent);
  context_stack().push_back(context);
  return kSuccess;
}

FAKECUDA_API Result cuCtxPopCurrent_v2(ContextHandle* context) {
  const Result injected = State::get().faults.enter(Call::CtxPopCurrent);
  std::vector<void*>& stack = context_stack();
  if (stack.empty()) return injected != kSuccess ? injected : without_context(Call::CtxPopCurrent);
  *context = stack.back();
  stack.pop_back();
  return injected;
}

}  // namespace fakecuda
