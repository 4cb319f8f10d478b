// The driver layer: what is refused, what breaks the device for good, and what the stand-in finds wrong.
#include <sys/mman.h>
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cuda/driver_error.h"
#include "src/error.h"
#include "tests/native/adding.h"
#include "tests/native/cuda_groups.h"

namespace moerun::cuda {
namespace {

void memory_that_is_not_there() {
  const Setting little("FAKECUDA_MEMORY", std::to_string(3 << 20));
  const Setting locked("FAKECUDA_PINNED", std::to_string(1 << 20));
  {
    const ContextPtr context = open();
    const DeviceMemory some(context, 1 << 20);
    expect_throw<GpuOutOfMemory>([&] { DeviceMemory(context, 3 << 20); }, "too much device memory",
                                 {"3 MiB", "2 MiB of 3 MiB are free", "gpu_cache", "OUT_OF_MEMORY"});
    expect_throw<GpuOutOfMemory>([&] { PinnedMemory(context, 2 << 20); }, "too much pinned memory",
                                 {"2 MiB of pinned host memory"});
    const DeviceMemory rest(context, 2 << 20);
  }
  expect_clean("running out of memory");
}

void registering_may_be_refused() {
  constexpr size_t kPages = 4 * 4096;
  void* const mapping = mmap(nullptr, kPages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  using Access = RegisteredMemory::Access;
  const auto try_it = [&](const ContextPtr& context, Access access, const std::string& reason) {
    std::string why_not;
    const auto memory = RegisteredMemory::try_register(context, mapping, kPages, access, why_not);
    expect(memory.has_value() == reason.empty(), "registering: " + why_not);
    expect(why_not.find(reason) != std::string::npos, reason + " is not in: " + why_not);
    if (!memory) return;
    const Stream stream(context);
    const DeviceMemory to(context, kPages);
    stream.copy_to_device(to.address(), mapping, kPages);
    stream.synchronize();
    expect(fake().counter("unpinned_copies") == 0, "registered memory is pinned");
    std::string again;
    expect(!RegisteredMemory::try_register(context, mapping, kPages, access, again), "registering twice");
    expect(again.find("ALREADY_REGISTERED") != std::string::npos, again);
  };
  try_it(open(), Access::read_write, "");
  try_it(open(), Access::read_only, "");
  {
    const Setting setting("FAKECUDA_REGISTER", "writable");
    try_it(open(), Access::read_only, "cannot pin read-only memory");
    try_it(open(), Access::read_write, "");
  }
  {
    const Setting setting("FAKECUDA_REGISTER", "none");
    try_it(open(), Access::read_write, "cannot pin memory");
  }
  {
    const Setting setting("FAKECUDA_PINNED", "4096");
    try_it(open(), Access::read_write, "CUDA_ERROR_OUT_OF_MEMORY");
  }
  fake().fail("cuMemHostRegister_v2", 1, kIllegalAddress);
  expect_throw<GpuError>([&] { try_it(open(), Access::read_write, ""); }, "registering on a broken device");
  fake().reset();
  munmap(mapping, kPages);
  expect_clean("registering");
}

void kernels_are_checked() {
  const auto with_scratch = [](const char* pointers) {
    const Setting setting("FAKECUDA_SCRATCH", pointers);
    expect(add_on_two_streams(open(), true) == 0, std::string("scratch pointers: ") + pointers);
  };
  for (const char* pointers : {"0", "1", "2"}) with_scratch(pointers);
  expect_throw<InvalidArgument>([&] { with_scratch("3"); }, "three scratch pointers", {"fake_add"});
  {
    const ContextPtr context = open();
    const auto module = std::make_shared<const Module>(context, kAddImage);
    const auto with = [&](const std::function<void(KernelSpec&)>& change) {
      KernelSpec spec = add_spec();
      change(spec);
      return Kernel(module, spec);
    };
    expect_throw<InvalidArgument>([&] { with([](KernelSpec& s) { s.parameter_bytes[3] = 8; }); },
                                  "a parameter of another size", {"parameter 3", "4 bytes, not 8"});
    expect_throw<InvalidArgument>([&] { with([](KernelSpec& s) { s.parameter_bytes.resize(99, 8); }); },
                                  "too many parameters", {"99"});
    expect_throw<InvalidArgument>([&] { with([](KernelSpec& s) { s.shared_bytes = 1 << 20; }); },
                                  "too much shared memory", {"1048576", "232448"});
    expect_throw<GpuError>([&] { with([](KernelSpec& s) { s.name = "fake_sub"; }); }, "an unknown kernel",
                           {"fake_sub", "CUDA_ERROR_NOT_FOUND"});
    const Stream stream(context);
    const Kernel large = with([](KernelSpec& s) { s.shared_bytes = 100000; });
    large.launch(stream, {}, DevicePtr{0}, DevicePtr{0}, DevicePtr{0}, 0);
    expect(fake().calls("cuFuncSetAttribute") == 1, "shared memory above 48 KiB is asked for");
    expect_throw<InvalidArgument>([&] { large.launch(stream, {}, DevicePtr{0}); }, "too few arguments",
                                  {"fake_add"});
    expect_throw<GpuError>(
        [&] { large.launch(stream, {.x = 0}, DevicePtr{0}, DevicePtr{0}, DevicePtr{0}, 0); }, "no blocks",
        {"launching", "cuLaunchKernel", "CUDA_ERROR_INVALID_VALUE (1)"});
    expect_throw<GpuError>([&] { Module(context, "garbage"); }, "a damaged image",
                           {"CUDA_ERROR_INVALID_IMAGE", "kernel cache"});
  }
  {
    const Setting setting("FAKECUDA_IMAGE_COMPUTE", "80");
    expect_throw<GpuError>([] { add_kernel(open()); }, "kernels for another architecture",
                           {"CUDA_ERROR_NO_BINARY_FOR_GPU", "compiled for another GPU"});
  }
  fake().reset();
  expect_clean("checking kernels");
}

void a_fault_breaks_the_device_for_good() {
  {
    const ContextPtr context = open();
    const Stream stream(context), other(context);
    Event event(context);
    const DeviceMemory sum(context, kBytes);
    const Kernel add = add_kernel(context);
    std::atomic<bool> submitted{false};
    stream.call_on_host(
        [](void* flag) {
          while (!*static_cast<std::atomic<bool>*>(flag)) std::this_thread::yield();
        },
        &submitted);
    add.launch(stream, {}, sum.address(), sum.address() + (1 << 20), sum.address(), kCount);
    stream.record(event);
    other.wait(event);  // does not hang
    submitted = true;
    for (int again = 0; again < 2; ++again) {
      try {
        stream.synchronize();
        expect(false, "a fault is not reported");
      } catch (const GpuError& error) {
        expect(error.code == kIllegalAddress && is_sticky(error.code), "the code of a fault");
        expect(std::string(error.what()).find("start a new one") != std::string::npos, error.what());
      }
    }
    expect_throw<GpuError>([&] { other.synchronize(); }, "the other streams");
    expect_throw<GpuError>([&] { DeviceMemory(context, kBytes); }, "allocating on a broken device");
  }
  fake().reset();  // as a new process does
  expect(add_on_two_streams(open(), true) == 0, "a new process");
  expect_clean("a fault");
}

void misuse_is_found() {
  const ContextPtr context = open();
  const DriverTable& driver = context->driver();
  const auto violations = [] { return fake().counter("violations"); };
  {
    StreamHandle handle = nullptr;
    driver.StreamCreate(&handle, kStreamNonBlocking, 0);
    driver.StreamDestroy(handle);
    expect(driver.StreamSynchronize(handle) == kInvalidHandle && violations() == 1, "a destroyed stream");
    expect(driver.StreamDestroy(handle) == kInvalidHandle && violations() == 2, "destroying it again");
  }
  {
    const Setting slow("FAKECUDA_H2D_BYTES_PER_S", "100000");
    const Stream stream(context);
    const PinnedMemory from(context, kBytes);
    {
      const DeviceMemory to(context, kBytes);
      stream.copy_to_device(to.address(), from.data(), kBytes);
    }
    expect(violations() == 1, "device memory is freed while it is copied to");
    const DeviceMemory to(context, kBytes);
    {
      const PinnedMemory short_lived(context, kBytes);
      stream.copy_to_device(to.address(), short_lived.data(), kBytes);
    }
    expect(violations() == 2, "pinned memory is freed while it is copied from");
  }
  fake().reset();
}

}  // namespace

void refusals() {
  memory_that_is_not_there();
  registering_may_be_refused();
  kernels_are_checked();
  a_fault_breaks_the_device_for_good();
  misuse_is_found();
}

}  // namespace moerun::cuda
