// The functions of libcuda.so.1 that moerun calls, found at run time: nothing links to the driver, so one
// build serves machines with and without a GPU. The owners of context.h and handles.h are its callers.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "cuda/driver_types.h"

namespace moerun::cuda {

// One function of the driver and the name that it is exported under.
template <class Signature>
struct DriverFunction;

template <class... Parameters>
struct DriverFunction<Result(Parameters...)> {
  const char* name = "";
  Result (*address)(Parameters...) = nullptr;  // null: an optional function that this driver lacks

  Result operator()(Parameters... arguments) const { return address(arguments...); }
  explicit operator bool() const { return address != nullptr; }
};

// X(member, exported symbol, signature)
#define MOERUN_CUDA_FUNCTIONS(X)                                                                 \
  X(Init, cuInit, Result(unsigned))                                                              \
  X(DriverGetVersion, cuDriverGetVersion, Result(int*))                                          \
  X(GetErrorName, cuGetErrorName, Result(Result, const char**))                                  \
  X(DeviceGetCount, cuDeviceGetCount, Result(int*))                                              \
  X(DeviceGet, cuDeviceGet, Result(DeviceOrdinal*, int))                                         \
  X(DeviceGetName, cuDeviceGetName, Result(char*, int, DeviceOrdinal))                           \
  X(DeviceGetAttribute, cuDeviceGetAttribute, Result(int*, int, DeviceOrdinal))                  \
  X(DeviceGetPciBusId, cuDeviceGetPCIBusId, Result(char*, int, DeviceOrdinal))                   \
  X(DeviceTotalMem, cuDeviceTotalMem_v2, Result(size_t*, DeviceOrdinal))                         \
  X(PrimaryCtxRetain, cuDevicePrimaryCtxRetain, Result(ContextHandle*, DeviceOrdinal))           \
  X(PrimaryCtxRelease, cuDevicePrimaryCtxRelease_v2, Result(DeviceOrdinal))                      \
  X(CtxSetCurrent, cuCtxSetCurrent, Result(ContextHandle))                                       \
  X(CtxPushCurrent, cuCtxPushCurrent_v2, Result(ContextHandle))                                  \
  X(CtxPopCurrent, cuCtxPopCurrent_v2, Result(ContextHandle*))                                   \
  X(MemGetInfo, cuMemGetInfo_v2, Result(size_t*, size_t*))                                       \
  X(MemAlloc, cuMemAlloc_v2, Result(DevicePtr*, size_t))                                         \
  X(MemFree, cuMemFree_v2, Result(DevicePtr))                                                    \
  X(MemHostAlloc, cuMemHostAlloc, Result(void**, size_t, unsigned))                              \
  X(MemFreeHost, cuMemFreeHost, Result(void*))                                                   \
  X(MemHostRegister, cuMemHostRegister_v2, Result(void*, size_t, unsigned))                      \
  X(MemHostUnregister, cuMemHostUnregister, Result(void*))                                       \
  X(StreamCreate, cuStreamCreateWithPriority, Result(StreamHandle*, unsigned, int))              \
  X(StreamDestroy, cuStreamDestroy_v2, Result(StreamHandle))                                     \
  X(StreamSynchronize, cuStreamSynchronize, Result(StreamHandle))                                \
  X(StreamQuery, cuStreamQuery, Result(StreamHandle))                                            \
  X(StreamWaitEvent, cuStreamWaitEvent, Result(StreamHandle, EventHandle, unsigned))             \
  X(StreamGetId, cuStreamGetId, Result(StreamHandle, unsigned long long*))                       \
  X(StreamIsCapturing, cuStreamIsCapturing, Result(StreamHandle, CaptureStatus*))                \
  X(EventCreate, cuEventCreate, Result(EventHandle*, unsigned))                                  \
  X(EventDestroy, cuEventDestroy_v2, Result(EventHandle))                                        \
  X(EventRecord, cuEventRecord, Result(EventHandle, StreamHandle))                               \
  X(EventQuery, cuEventQuery, Result(EventHandle))                                               \
  X(EventSynchronize, cuEventSynchronize, Result(EventHandle))                                   \
  X(EventElapsedTime, cuEventElapsedTime, Result(float*, EventHandle, EventHandle))              \
  X(MemcpyHtoDAsync, cuMemcpyHtoDAsync_v2, Result(DevicePtr, const void*, size_t, StreamHandle)) \
  X(MemcpyDtoHAsync, cuMemcpyDtoHAsync_v2, Result(void*, DevicePtr, size_t, StreamHandle))       \
  X(MemcpyDtoDAsync, cuMemcpyDtoDAsync_v2, Result(DevicePtr, DevicePtr, size_t, StreamHandle))   \
  X(MemsetD8Async, cuMemsetD8Async, Result(DevicePtr, unsigned char, size_t, StreamHandle))      \
  X(LaunchHostFunc, cuLaunchHostFunc, Result(StreamHandle, HostFunction*, void*))                \
  X(ModuleLoadData, cuModuleLoadData, Result(ModuleHandle*, const void*))                        \
  X(ModuleUnload, cuModuleUnload, Result(ModuleHandle))                                          \
  X(ModuleGetFunction, cuModuleGetFunction, Result(FunctionHandle*, ModuleHandle, const char*))  \
  X(FuncSetAttribute, cuFuncSetAttribute, Result(FunctionHandle, int, int))                      \
  X(LaunchKernel, cuLaunchKernel,                                                                \
    Result(FunctionHandle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, \
           StreamHandle, void**, void**))

// May be absent: cuFuncGetParamInfo came with CUDA 12.4; not every platform has operations on memory in
// streams.
#define MOERUN_CUDA_OPTIONAL_FUNCTIONS(X)                                                         \
  X(FuncGetParamInfo, cuFuncGetParamInfo, Result(FunctionHandle, size_t, size_t*, size_t*))       \
  X(StreamWaitValue, cuStreamWaitValue32_v2, Result(StreamHandle, DevicePtr, uint32_t, unsigned)) \
  X(StreamWriteValue, cuStreamWriteValue32_v2, Result(StreamHandle, DevicePtr, uint32_t, unsigned))

// The oldest driver that moerun uses, as 1000 * major + 10 * minor: Triton's and NVRTC's cubins of the CUDA
// 12 family run on any driver of that family.
constexpr int kOldestDriverVersion = 12000;

class DriverTable {
 public:
#define MOERUN_MEMBER(member, symbol, ...) DriverFunction<__VA_ARGS__> member;
  MOERUN_CUDA_FUNCTIONS(MOERUN_MEMBER)
  MOERUN_CUDA_OPTIONAL_FUNCTIONS(MOERUN_MEMBER)
#undef MOERUN_MEMBER

  const std::string& library() const { return library_; }  // what was opened
  int version() const { return version_; }                 // 1000 * major + 10 * minor

  // Calls and checks. `doing` says what for, as in "copying an expert to its slot"; it becomes a part of the
  // error. Throws as fail() does.
  template <class... Parameters, class... Arguments>
  void call(const DriverFunction<Result(Parameters...)>& function, const char* doing,
            Arguments&&... arguments) const {
    const Result result = function(std::forward<Arguments>(arguments)...);
    if (result != kSuccess) fail(result, function.name, doing);
  }

  // Throws GpuOutOfMemory for kOutOfMemory, GpuUnavailable when there is no device, otherwise GpuError.
  [[noreturn]] void fail(Result result, const char* function, const std::string& doing) const;

  std::string error_name(Result result) const;  // "CUDA_ERROR_OUT_OF_MEMORY (2)"

 private:
  friend std::shared_ptr<const DriverTable> open_driver();
  DriverTable() = default;

  std::string library_;
  int version_ = 0;
};

using Driver = std::shared_ptr<const DriverTable>;

// The library that open_driver() looks for: libcuda.so.1, or what MOERUN_LIBCUDA names.
std::string driver_library();

// Opens and initialises the driver. Throws GpuUnavailable with the reason: no library, too old, a function
// missing, no device, or what the driver itself says.
Driver open_driver();

}  // namespace moerun::cuda
