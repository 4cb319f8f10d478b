// The part of NVIDIA's driver ABI that moerun uses: types, error codes and flags with the values of cuda.h,
// written down here so that building needs no CUDA toolkit. cuda_h_check.cc compares them with a real cuda.h.
#pragma once
#include <cstddef>
#include <cstdint>

namespace moerun::cuda {

using Result = int;                // CUresult
using DeviceOrdinal = int;         // CUdevice
using DevicePtr = uint64_t;        // CUdeviceptr: an address on the device, never to be dereferenced here
using ContextHandle = void*;       // CUcontext
using ModuleHandle = void*;        // CUmodule
using FunctionHandle = void*;      // CUfunction
using StreamHandle = void*;        // CUstream; null is the legacy default stream
using EventHandle = void*;         // CUevent
using HostFunction = void(void*);  // CUhostFn
using CaptureStatus = int;         // CUstreamCaptureStatus

// CUresult
constexpr Result kSuccess = 0;
constexpr Result kInvalidValue = 1;
constexpr Result kOutOfMemory = 2;
constexpr Result kDeinitialized = 4;
constexpr Result kNoDevice = 100;
constexpr Result kInvalidDevice = 101;
constexpr Result kInvalidImage = 200;
constexpr Result kInvalidContext = 201;
constexpr Result kNoBinaryForGpu = 209;
constexpr Result kEccUncorrectable = 214;
constexpr Result kInvalidPtx = 218;
constexpr Result kUnsupportedPtxVersion = 222;
constexpr Result kInvalidHandle = 400;
constexpr Result kNotFound = 500;
constexpr Result kNotReady = 600;
constexpr Result kIllegalAddress = 700;
constexpr Result kLaunchOutOfResources = 701;
constexpr Result kLaunchTimeout = 702;
constexpr Result kContextIsDestroyed = 709;
constexpr Result kAssert = 710;
constexpr Result kHostMemoryAlreadyRegistered = 712;
constexpr Result kHostMemoryNotRegistered = 713;
constexpr Result kHardwareStackError = 714;
constexpr Result kIllegalInstruction = 715;
constexpr Result kMisalignedAddress = 716;
constexpr Result kInvalidAddressSpace = 717;
constexpr Result kInvalidPc = 718;
constexpr Result kLaunchFailed = 719;
constexpr Result kTensorMemoryLeak = 721;
constexpr Result kNotPermitted = 800;
constexpr Result kNotSupported = 801;
constexpr Result kSystemNotReady = 802;
constexpr Result kSystemDriverMismatch = 803;
constexpr Result kMpsClientTerminated = 810;
constexpr Result kUnknown = 999;

// CUdevice_attribute
constexpr int kMultiprocessorCount = 16;
constexpr int kMemoryClockKhz = 36;
constexpr int kMemoryBusWidthBits = 37;
constexpr int kL2CacheBytes = 38;
constexpr int kAsyncEngineCount = 40;
constexpr int kComputeMajor = 75;
constexpr int kComputeMinor = 76;
constexpr int kMaxSharedBytesPerBlockOptin = 97;
constexpr int kHostRegisterSupported = 99;
constexpr int kReadOnlyHostRegisterSupported = 113;

// CUfunction_attribute
constexpr int kMaxDynamicSharedBytes = 8;

// Flags
constexpr unsigned kStreamNonBlocking = 1;
constexpr unsigned kEventBlockingSync = 1;
constexpr unsigned kEventDisableTiming = 2;
constexpr unsigned kHostAllocPortable = 1;
constexpr unsigned kHostRegisterPortable = 1;
constexpr unsigned kHostRegisterReadOnly = 8;
constexpr unsigned kWaitUntilReached = 0;  // CUstreamWaitValue_flags: (int32_t)(*address - value) >= 0
constexpr unsigned kWriteBehindAll = 0;    // CUstreamWriteValue_flags: behind a memory barrier

// CUstreamCaptureStatus
constexpr CaptureStatus kNotCapturing = 0;

}  // namespace moerun::cuda
