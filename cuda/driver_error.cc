#include "cuda/driver_error.h"

#include "src/error.h"

namespace moerun::cuda {

bool is_sticky(Result result) {
  switch (result) {
    case kDeinitialized:
    case kEccUncorrectable:
    case kIllegalAddress:
    case kLaunchTimeout:
    case kContextIsDestroyed:
    case kAssert:
    case kHardwareStackError:
    case kIllegalInstruction:
    case kMisalignedAddress:
    case kInvalidAddressSpace:
    case kInvalidPc:
    case kLaunchFailed:
    case kTensorMemoryLeak:
    case kMpsClientTerminated:
    case kUnknown:
      return true;
    default:
      return false;
  }
}

std::string remedy_for(Result result) {
  switch (result) {
    case kOutOfMemory:
      return "; lower gpu_cache, or free memory that other programs hold (nvidia-smi shows them)";
    case kNoDevice:
    case kInvalidDevice:
      return "; see nvidia-smi and CUDA_VISIBLE_DEVICES, or use device=\"cpu\"";
    case kInvalidImage:
    case kInvalidPtx:
    case kUnsupportedPtxVersion:
    case kNoBinaryForGpu:
      return "; the kernels were compiled for another GPU, or the kernel cache is damaged: clear it";
    case kLaunchOutOfResources:
      return "; the kernel needs more registers or shared memory than this GPU has";
    case kSystemDriverMismatch:
      return "; the driver's library and its kernel module differ in version: reboot, or reinstall the "
             "driver";
    case kSystemNotReady:
      return "; the GPU is not ready: on NVSwitch machines nvidia-fabricmanager has to run";
    default:
      return is_sticky(result)
                 ? "; an earlier kernel or copy failed, and this process cannot use the GPU any "
                   "more: start a new one"
                 : "";
  }
}

void throw_driver_error(Result result, const std::string& text) {
  if (result == kOutOfMemory) throw GpuOutOfMemory(result, text);
  if (result == kNoDevice || result == kInvalidDevice) throw GpuUnavailable(text);
  throw GpuError(result, text);
}

}  // namespace moerun::cuda
