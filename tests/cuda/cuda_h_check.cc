// Compares cuda/driver_types.h and cuda/driver_table.h with NVIDIA's cuda.h; test_cuda_h.py compiles it where
// it finds one. A pointer is compared as a pointer only: the handles' types are opaque here.
#include "cuda/driver_table.h"

#include <cuda.h>

#include <type_traits>

namespace moerun::cuda {
namespace {

template <class Ours, class Theirs>
constexpr bool same_in_registers() {
  if constexpr (std::is_pointer_v<Ours> || std::is_pointer_v<Theirs>)
    return std::is_pointer_v<Ours> && std::is_pointer_v<Theirs>;
  else
    return sizeof(Ours) == sizeof(Theirs);
}

template <class Ours, class Theirs>
struct SameCall;

template <class Ours, class... OurParameters, class Theirs, class... TheirParameters>
struct SameCall<Ours (*)(OurParameters...), Theirs (*)(TheirParameters...)> {
  static constexpr bool value = [] {
    if constexpr (sizeof...(OurParameters) == sizeof...(TheirParameters))
      return same_in_registers<Ours, Theirs>() &&
             (same_in_registers<OurParameters, TheirParameters>() && ... && true);
    else
      return false;
  }();
};

#define MOERUN_CHECK(member, symbol, ...) \
  static_assert(SameCall<decltype(DriverFunction<__VA_ARGS__>::address), decltype(&symbol)>::value, #symbol);
MOERUN_CUDA_FUNCTIONS(MOERUN_CHECK)
MOERUN_CUDA_OPTIONAL_FUNCTIONS(MOERUN_CHECK)
#undef MOERUN_CHECK

#define MOERUN_SAME(ours, theirs) static_assert(static_cast<int>(ours) == static_cast<int>(theirs), #theirs)
MOERUN_SAME(kSuccess, CUDA_SUCCESS);
MOERUN_SAME(kInvalidValue, CUDA_ERROR_INVALID_VALUE);
MOERUN_SAME(kOutOfMemory, CUDA_ERROR_OUT_OF_MEMORY);
MOERUN_SAME(kDeinitialized, CUDA_ERROR_DEINITIALIZED);
MOERUN_SAME(kNoDevice, CUDA_ERROR_NO_DEVICE);
MOERUN_SAME(kInvalidDevice, CUDA_ERROR_INVALID_DEVICE);
MOERUN_SAME(kInvalidImage, CUDA_ERROR_INVALID_IMAGE);
MOERUN_SAME(kInvalidContext, CUDA_ERROR_INVALID_CONTEXT);
MOERUN_SAME(kNoBinaryForGpu, CUDA_ERROR_NO_BINARY_FOR_GPU);
MOERUN_SAME(kEccUncorrectable, CUDA_ERROR_ECC_UNCORRECTABLE);
MOERUN_SAME(kInvalidPtx, CUDA_ERROR_INVALID_PTX);
MOERUN_SAME(kUnsupportedPtxVersion, CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
MOERUN_SAME(kInvalidHandle, CUDA_ERROR_INVALID_HANDLE);
MOERUN_SAME(kNotFound, CUDA_ERROR_NOT_FOUND);
MOERUN_SAME(kNotReady, CUDA_ERROR_NOT_READY);
MOERUN_SAME(kIllegalAddress, CUDA_ERROR_ILLEGAL_ADDRESS);
MOERUN_SAME(kLaunchOutOfResources, CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
MOERUN_SAME(kLaunchTimeout, CUDA_ERROR_LAUNCH_TIMEOUT);
MOERUN_SAME(kContextIsDestroyed, CUDA_ERROR_CONTEXT_IS_DESTROYED);
MOERUN_SAME(kAssert, CUDA_ERROR_ASSERT);
MOERUN_SAME(kHostMemoryAlreadyRegistered, CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
MOERUN_SAME(kHostMemoryNotRegistered, CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
MOERUN_SAME(kHardwareStackError, CUDA_ERROR_HARDWARE_STACK_ERROR);
MOERUN_SAME(kIllegalInstruction, CUDA_ERROR_ILLEGAL_INSTRUCTION);
MOERUN_SAME(kMisalignedAddress, CUDA_ERROR_MISALIGNED_ADDRESS);
MOERUN_SAME(kInvalidAddressSpace, CUDA_ERROR_INVALID_ADDRESS_SPACE);
MOERUN_SAME(kInvalidPc, CUDA_ERROR_INVALID_PC);
MOERUN_SAME(kLaunchFailed, CUDA_ERROR_LAUNCH_FAILED);
MOERUN_SAME(kNotPermitted, CUDA_ERROR_NOT_PERMITTED);
MOERUN_SAME(kNotSupported, CUDA_ERROR_NOT_SUPPORTED);
MOERUN_SAME(kSystemNotReady, CUDA_ERROR_SYSTEM_NOT_READY);
MOERUN_SAME(kSystemDriverMismatch, CUDA_ERROR_SYSTEM_DRIVER_MISMATCH);
MOERUN_SAME(kUnknown, CUDA_ERROR_UNKNOWN);
MOERUN_SAME(kMpsClientTerminated, CUDA_ERROR_MPS_CLIENT_TERMINATED);
#if CUDA_VERSION >= 12090
MOERUN_SAME(kTensorMemoryLeak, CUDA_ERROR_TENSOR_MEMORY_LEAK);
#endif
MOERUN_SAME(kMultiprocessorCount, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
MOERUN_SAME(kMemoryClockKhz, CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE);
MOERUN_SAME(kMemoryBusWidthBits, CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH);
MOERUN_SAME(kL2CacheBytes, CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
MOERUN_SAME(kAsyncEngineCount, CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT);
MOERUN_SAME(kComputeMajor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
MOERUN_SAME(kComputeMinor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
MOERUN_SAME(kMaxSharedBytesPerBlockOptin, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
MOERUN_SAME(kHostRegisterSupported, CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED);
MOERUN_SAME(kReadOnlyHostRegisterSupported, CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED);
MOERUN_SAME(kMaxDynamicSharedBytes, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
MOERUN_SAME(kStreamNonBlocking, CU_STREAM_NON_BLOCKING);
MOERUN_SAME(kEventBlockingSync, CU_EVENT_BLOCKING_SYNC);
MOERUN_SAME(kEventDisableTiming, CU_EVENT_DISABLE_TIMING);
MOERUN_SAME(kHostAllocPortable, CU_MEMHOSTALLOC_PORTABLE);
MOERUN_SAME(kHostRegisterPortable, CU_MEMHOSTREGISTER_PORTABLE);
MOERUN_SAME(kHostRegisterReadOnly, CU_MEMHOSTREGISTER_READ_ONLY);
MOERUN_SAME(kWaitUntilReached, CU_STREAM_WAIT_VALUE_GEQ);
MOERUN_SAME(kWriteBehindAll, CU_STREAM_WRITE_VALUE_DEFAULT);
MOERUN_SAME(kNotCapturing, CU_STREAM_CAPTURE_STATUS_NONE);

}  // namespace
}  // namespace moerun::cuda
