// Modules, their functions, and launches.
#include <cstring>
#include <memory>
#include <string>

#include "tests/fakecuda/state.h"

namespace fakecuda {
namespace {

constexpr unsigned kMostThreads = 1024, kMostBlocksBehindX = 65535;
constexpr uint32_t kPointerBytes = 8;

using Parameters = std::vector<std::vector<std::byte>>;

// The values of a kernel's own parameters, copied at the call as the driver does.
Parameters read_parameters(const Kernel& kernel, void** values) {
  Parameters parameters;
  for (size_t i = 0; i < kernel.emulator->parameter_bytes.size(); ++i) {
    const auto* const begin = static_cast<const std::byte*>(values[i]);
    parameters.emplace_back(begin, begin + kernel.emulator->parameter_bytes[i]);
  }
  return parameters;
}

// Memory that the kernel can reach through its parameters, for finding frees that come too early.
std::vector<Touched> reachable(const Parameters& parameters) {
  std::vector<Touched> touched;
  for (const auto& value : parameters) {
    if (value.size() != kPointerBytes) continue;
    uint64_t address = 0;
    std::memcpy(&address, value.data(), sizeof(address));
    if (State::get().bytes_at(address, 1) != nullptr) touched.push_back({address, 1});
  }
  return touched;
}

std::byte* reach(uint64_t address, int64_t bytes, const std::string& problem) {
  State& state = State::get();
  if (bytes == 0) return nullptr;
  std::byte* const at = state.bytes_at(address, bytes);
  if (at == nullptr) throw KernelFault(kIllegalAddress, "an address outside of all allocations");
  if (!problem.empty()) state.violate(problem);
  return at;
}

void run_kernel(const Kernel& kernel, const Parameters& parameters, Dimensions grid, Dimensions block,
                const Operation& operation) {
  State& state = State::get();
  MemoryAccess memory;
  memory.read = [&](uint64_t address, int64_t bytes) -> const std::byte* {
    return reach(address, bytes, state.order.read(operation, address, bytes));
  };
  memory.write = [&](uint64_t address, int64_t bytes) {
    return reach(address, bytes, state.order.write(operation, address, bytes));
  };
  const Result injected = state.faults.enter(Call::kKernel);
  if (injected != kSuccess) {
    state.faults.set_sticky(injected);
    return;
  }
  try {
    kernel.emulator->run(Launch(grid, block, kernel.properties, parameters, memory));
  } catch (const KernelFault& fault) {
    state.faults.set_sticky(fault.code);
  }
}

}  // namespace

FAKECUDA_API Result cuModuleLoadData(ModuleHandle* handle, const void* image) {
  FAKECUDA_ENTER_IN_CONTEXT(ModuleLoadData);
  State& state = State::get();
  state.may_wait_for_all(Call::ModuleLoadData);
  if (image == nullptr) return kInvalidValue;
  void* const context = context_stack().back();
  const auto kernels = read_image(static_cast<const char*>(image), context);
  if (kernels.empty()) return kInvalidImage;
  if (state.options.image_compute != state.options.compute) return kNoBinaryForGpu;
  auto module = std::make_shared<Module>();
  module->context = context;
  for (const auto& kernel : kernels)
    module->functions.emplace_back(kernel->name, state.functions.add(kernel));
  *handle = state.modules.add(std::move(module));
  return kSuccess;
}

FAKECUDA_API Result cuModuleUnload(ModuleHandle handle) {
  State& state = State::get();
  const Result injected = state.faults.enter(Call::ModuleUnload);
  state.may_wait_for_all(Call::ModuleUnload);
  const auto module = state.modules.remove(handle);
  if (!module) return destroyed_handle(Call::ModuleUnload);
  for (const auto& [name, function] : module->functions) state.functions.remove(function);
  return injected;
}

FAKECUDA_API Result cuModuleGetFunction(FunctionHandle* function, ModuleHandle handle, const char* name) {
  FAKECUDA_ENTER_IN_CONTEXT(ModuleGetFunction);
  const auto module = State::get().modules.find(handle);
  if (!module) return destroyed_handle(Call::ModuleGetFunction);
  for (const auto& [known, known_handle] : module->functions)
    if (known == name) {
      *function = known_handle;
      return kSuccess;
    }
  return kNotFound;
}

FAKECUDA_API Result cuFuncSetAttribute(FunctionHandle handle, int attribute, int value) {
  FAKECUDA_ENTER_IN_CONTEXT(FuncSetAttribute);
  State& state = State::get();
  const auto kernel = state.functions.find(handle);
  if (!kernel) return destroyed_handle(Call::FuncSetAttribute);
  if (attribute != kMaxDynamicSharedBytes || value < 0 || value > state.options.shared_bytes_per_block())
    return kInvalidValue;
  kernel->shared_limit = static_cast<unsigned>(value);
  return kSuccess;
}

FAKECUDA_API Result cuFuncGetParamInfo(FunctionHandle handle, size_t index, size_t* offset, size_t* bytes) {
  FAKECUDA_ENTER_IN_CONTEXT(FuncGetParamInfo);
  State& state = State::get();
  const auto kernel = state.functions.find(handle);
  if (!kernel) return destroyed_handle(Call::FuncGetParamInfo);
  std::vector<uint32_t> sizes = kernel->emulator->parameter_bytes;
  sizes.insert(sizes.end(), static_cast<size_t>(state.options.scratch_pointers), kPointerBytes);
  if (index >= sizes.size()) return kInvalidValue;
  *offset = 0;
  for (size_t i = 0; i <= index; ++i) {
    *offset = (*offset + sizes[i] - 1) / sizes[i] * sizes[i];
    if (i < index) *offset += sizes[i];
  }
  *bytes = sizes[index];
  return kSuccess;
}

FAKECUDA_API Result cuLaunchKernel(FunctionHandle handle, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                   unsigned block_x, unsigned block_y, unsigned block_z,
                                   unsigned shared_bytes, StreamHandle stream_handle, void** values,
                                   void** extra) {
  FAKECUDA_ENTER_IN_CONTEXT(LaunchKernel);
  State& state = State::get();
  const auto kernel = state.functions.find(handle);
  const auto stream = state.find_stream(stream_handle, Call::LaunchKernel);
  if (!kernel) return destroyed_handle(Call::LaunchKernel);
  if (!stream || kernel->context != stream->context()) return kInvalidHandle;
  const uint64_t threads = uint64_t{block_x} * block_y * block_z;
  if (grid_x == 0 || grid_y == 0 || grid_z == 0 || grid_y > kMostBlocksBehindX ||
      grid_z > kMostBlocksBehindX || threads == 0 || threads > kMostThreads ||
      shared_bytes > kernel->shared_limit || extra != nullptr)
    return kInvalidValue;
  state.count(Counter::launches);
  Parameters parameters = read_parameters(*kernel, values);
  Work work;
  work.operation.name = kernel->name;
  work.touched = reachable(parameters);
  work.run = [kernel, parameters = std::move(parameters), grid = Dimensions{grid_x, grid_y, grid_z},
              block = Dimensions{block_x, block_y, block_z}](const Operation& operation) {
    run_kernel(*kernel, parameters, grid, block, operation);
  };
  stream->submit(state.host, std::move(work));
  return kSuccess;
}

}  // namespace fakecuda
