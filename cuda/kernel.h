// A kernel, ready to launch: its function, its block, and the check that the parameters which C++ passes are
// those that it was compiled with. For Triton's cubins and for NVRTC's.
//
// Triton appends pointers to scratch memory that our kernels do not use: none in 3.2, one in 3.3 and 3.4, two
// from 3.5 on. They are passed as null. A driver that cannot tell how many there are (before CUDA 12.4) reads
// as many as the kernel has and ignores the rest.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cuda/handles.h"

namespace moerun::cuda {

struct KernelSpec {
  std::string name;                       // of the function in the module
  unsigned threads = 128;                 // a block; 32 * num_warps of Triton's metadata
  unsigned shared_bytes = 0;              // dynamic; `shared` of Triton's metadata
  std::vector<uint32_t> parameter_bytes;  // of each parameter, without the scratch pointers
};

class Kernel {
 public:
  static constexpr size_t kMaxParameters = 40;  // heuristic: twice of what our longest kernel has
  static constexpr size_t kMaxScratchPointers = 2;

  // Throws InvalidArgument if the spec does not fit the compiled kernel or this device, GpuError otherwise.
  Kernel(std::shared_ptr<const Module> module, KernelSpec spec);

  // The arguments are the kernel's parameters by value, each of exactly the size that it was compiled with.
  template <class... Arguments>
  void launch(const StreamView& stream, Grid grid, const Arguments&... arguments) const {
    const std::array<uint32_t, sizeof...(Arguments)> sizes = {sizeof(Arguments)...};
    const std::array<const void*, sizeof...(Arguments)> values = {&arguments...};
    launch_checked(stream, grid, sizes.data(), values.data(), sizes.size());
  }

  const KernelSpec& spec() const { return spec_; }

 private:
  void check_parameters() const;
  void launch_checked(const StreamView& stream, Grid grid, const uint32_t* sizes, const void* const* values,
                      size_t count) const;

  std::shared_ptr<const Module> module_;
  KernelSpec spec_;
  Function function_;
};

}  // namespace moerun::cuda
