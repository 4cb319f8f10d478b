#include "cuda/kernel.h"

#include <algorithm>

#include "src/error.h"

namespace moerun::cuda {
namespace {

constexpr unsigned kSharedBytesWithoutAsking = 48 * 1024;

std::string text(size_t number) {
  return std::to_string(number);
}

}  // namespace

Kernel::Kernel(std::shared_ptr<const Module> module, KernelSpec spec)
    : module_(std::move(module)), spec_(std::move(spec)), function_(module_->function(spec_.name)) {
  const DeviceInfo& device = module_->context().device();
  if (spec_.parameter_bytes.size() > kMaxParameters)
    throw InvalidArgument("kernel " + spec_.name + " has " + text(spec_.parameter_bytes.size()) +
                          " parameters, and Kernel::kMaxParameters is " + text(kMaxParameters) +
                          "; raise it");
  if (spec_.shared_bytes > device.shared_bytes_per_block)
    throw InvalidArgument("kernel " + spec_.name + " needs " + text(spec_.shared_bytes) +
                          " bytes of shared memory, and a block on " + device.name + " has at most " +
                          std::to_string(device.shared_bytes_per_block) + "; choose smaller tiles");
  check_parameters();
  if (spec_.shared_bytes > kSharedBytesWithoutAsking) {
    const ContextScope scope(module_->context());
    function_.allow_shared_memory(spec_.shared_bytes);
  }
}

void Kernel::check_parameters() const {
  const ContextScope scope(module_->context());
  const std::string advice = "; the kernel cache holds kernels of another version: clear it";
  size_t index = 0;
  for (; index < spec_.parameter_bytes.size(); ++index) {
    const std::optional<size_t> bytes = function_.parameter_bytes(index);
    if (!bytes) return;  // the driver cannot tell
    if (*bytes != spec_.parameter_bytes[index])
      throw InvalidArgument("parameter " + text(index) + " of kernel " + spec_.name + " has " + text(*bytes) +
                            " bytes, not " + text(spec_.parameter_bytes[index]) + advice);
  }
  size_t scratch = 0;
  while (scratch <= kMaxScratchPointers && function_.parameter_bytes(index + scratch).value_or(0) != 0)
    ++scratch;
  if (scratch > kMaxScratchPointers)
    throw InvalidArgument("kernel " + spec_.name + " has more than the " + text(index) +
                          " parameters and the two scratch pointers that moerun passes" + advice);
}

void Kernel::launch_checked(const StreamView& stream, Grid grid, const uint32_t* sizes,
                            const void* const* values, size_t count) const {
  if (count != spec_.parameter_bytes.size() ||
      !std::equal(sizes, sizes + count, spec_.parameter_bytes.begin()))
    throw InvalidArgument("the launch of " + spec_.name +
                          " does not pass the parameters it was compiled with");
  DevicePtr no_scratch = 0;
  std::array<void*, kMaxParameters + kMaxScratchPointers> parameters{};
  for (size_t i = 0; i < count; ++i) parameters[i] = const_cast<void*>(values[i]);  // the driver only reads
  for (size_t i = 0; i < kMaxScratchPointers; ++i) parameters[count + i] = &no_scratch;
  function_.launch(stream, grid, spec_.threads, spec_.shared_bytes, parameters.data());
}

}  // namespace moerun::cuda
