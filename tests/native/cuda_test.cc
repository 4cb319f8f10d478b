// The driver layer on the stand-in driver: what owners, streams, events and kernels do, and what they do when
// a call fails. test_cuda.py compiles it plain and under sanitizers; MOERUN_LIBCUDA names the stand-in.
// Arguments: a group of tests. Prints what is wrong and returns 1.
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "cuda/driver_error.h"
#include "cuda/handles.h"
#include "cuda/kernel.h"
#include "src/error.h"
#include "tests/fakecuda/fakecuda.h"

namespace moerun::cuda {
namespace {

const char* const kAddImage = "function fake_add\n";
constexpr int kCount = 1000;  // floats
constexpr size_t kBytes = kCount * sizeof(float);

int failures = 0;

void expect(bool condition, const std::string& what) {
  if (condition) return;
  ++failures;
  std::printf("wrong: %s\n", what.c_str());
}

// The interface of the stand-in, in the library that open_driver() opens.
struct Fake {
  template <class Function>
  static Function* find(const char* name) {
    static void* const library = dlopen(std::getenv("MOERUN_LIBCUDA"), RTLD_NOW | RTLD_LOCAL);
    void* const address = library ? dlsym(library, name) : nullptr;
    if (address == nullptr) throw std::runtime_error(std::string("the stand-in driver lacks ") + name);
    return reinterpret_cast<Function*>(address);
  }
  void (*fail)(const char*, int64_t, int) = find<void(const char*, int64_t, int)>("fakecuda_fail");
  const char* (*failed)() = find<const char*()>("fakecuda_failed");
  int64_t (*calls)(const char*) = find<int64_t(const char*)>("fakecuda_calls");
  int64_t (*counter)(const char*) = find<int64_t(const char*)>("fakecuda_counter");
  int64_t (*leaks)() = find<int64_t()>("fakecuda_leaks");
  const char* (*violation)(int64_t) = find<const char*(int64_t)>("fakecuda_violation");
  void (*reset)() = find<void()>("fakecuda_reset");
};

const Fake& fake() {
  static const Fake interface;
  return interface;
}

void expect_clean(const std::string& after) {
  expect(fake().leaks() == 0, std::to_string(fake().leaks()) + " leaks after " + after);
  const char* const violation = fake().violation(0);
  expect(violation == nullptr, after + ": " + (violation ? violation : ""));
}

// A variable of the environment, for the stand-in, until the end of the scope.
class Setting {
 public:
  Setting(const char* name, const std::string& value) : name_(name) {
    setenv(name, value.c_str(), 1);
    fake().reset();
  }
  ~Setting() {
    unsetenv(name_);
    fake().reset();
  }
  Setting(const Setting&) = delete;
  Setting& operator=(const Setting&) = delete;

 private:
  const char* name_;
};

// The message of the exception that `action` throws, which must be an Error that contains all `parts`.
template <class Error>
void expect_throw(const std::function<void()>& action, const std::string& what,
                  const std::vector<std::string>& parts = {}) {
  try {
    action();
  } catch (const Error& error) {
    for (const std::string& part : parts)
      expect(std::string(error.what()).find(part) != std::string::npos,
             what + ": '" + part + "' is not in: " + error.what());
    return;
  } catch (const std::exception& error) {
    expect(false, what + " threw another exception: " + error.what());
    return;
  }
  expect(false, what + " threw nothing");
}

ContextPtr open(int device = 0) {
  ContextPtr context = Context::open(open_driver(), device);
  context->make_current();
  return context;
}

KernelSpec add_spec() {
  return {.name = "fake_add", .threads = 128, .shared_bytes = 0, .parameter_bytes = {8, 8, 8, 4}};
}

Kernel add_kernel(const ContextPtr& context) {
  return {std::make_shared<const Module>(context, kAddImage), add_spec()};
}

float* floats(const PinnedMemory& memory) {
  return static_cast<float*>(memory.data());
}

void fill(const PinnedMemory& memory, float value) {
  for (int i = 0; i < kCount; ++i) floats(memory)[i] = value + static_cast<float>(i);
}

int wrong_values(const PinnedMemory& memory, float value, float slope) {
  int wrong = 0;
  for (int i = 0; i < kCount; ++i) wrong += !(floats(memory)[i] == value + slope * static_cast<float>(i));
  return wrong;
}

// --- What everything does

void a_context_knows_its_device() {
  {
    const Setting two("FAKECUDA_DEVICES", "2");
    const ContextPtr context = open(1);
    expect(context->device().name == "Fake device 1", "name: " + context->device().name);
    expect(context->device().compute_major == 9, "compute capability");
    expect(context->device().multiprocessors == 132, "multiprocessors");
    expect(context->device().memory_gb_per_s > 3000, "memory bandwidth");
    expect(context->device().pci_bus_id == "ffff:01:00.0", "PCI id: " + context->device().pci_bus_id);
    expect(context->memory().free_bytes == context->device().memory_bytes, "all memory is free");
    const DeviceMemory memory(context, 1 << 20);
    expect(context->memory().free_bytes == context->device().memory_bytes - (1 << 20), "memory is taken");
    expect_throw<GpuUnavailable>([] { open(2); }, "device 2 of 2", {"no CUDA device 2", "shows 2"});
  }
  expect_clean("a context");
}

void copies_move_the_bytes() {
  {
    const ContextPtr context = open();
    const Stream stream(context);
    const DeviceMemory first(context, kBytes), second(context, kBytes);
    const PinnedMemory from(context, kBytes), to(context, kBytes);
    fill(from, 1);
    stream.copy_to_device(first.address(), from.data(), kBytes);
    stream.copy_on_device(second.address(), first.address(), kBytes);
    stream.copy_to_host(to.data(), second.address(), kBytes);
    stream.synchronize();
    expect(stream.idle(), "a stream is idle after synchronize");
    expect(wrong_values(to, 1, 1) == 0, "copied values");
    expect(fake().counter("unpinned_copies") == 0, "pinned memory counts as pinned");

    stream.fill(second.address(), 0, kBytes);
    std::vector<float> pageable(kCount, 1.0f);
    stream.copy_to_host(pageable.data(), second.address(), kBytes);
    expect(pageable[0] == 0 && pageable[kCount - 1] == 0, "filled values");
    expect(fake().counter("unpinned_copies") == 1, "a copy without pinning is counted");
  }
  expect_clean("copies");
}

void device_memory_is_nan_and_out_of_reach() {
  {
    const ContextPtr context = open();
    const Stream stream(context);
    const DeviceMemory memory(context, kBytes);
    const PinnedMemory to(context, kBytes);
    stream.copy_to_host(to.data(), memory.address(), kBytes);
    stream.synchronize();
    expect(std::isnan(floats(to)[0]) && std::isnan(floats(to)[kCount - 1]), "fresh memory is NaN");

    int ends[2];
    expect(pipe(ends) == 0, "a pipe");
    const ssize_t written = write(ends[1], reinterpret_cast<const void*>(memory.address()), 1);
    expect(written == -1 && errno == EFAULT, "the host cannot read device memory");
    close(ends[0]);
    close(ends[1]);
  }
  expect_clean("touching device memory");
}

// sum = a + b, with a and b copied on one stream and the kernel on another. Returns how many values are
// wrong.
int add_on_two_streams(const ContextPtr& context, bool wait) {
  const Stream copies(context), compute(context);
  Event arrived(context);
  const DeviceMemory a(context, kBytes), b(context, kBytes), sum(context, kBytes);
  const PinnedMemory from(context, kBytes), to(context, kBytes);
  const Kernel add = add_kernel(context);
  fill(from, 3);
  copies.copy_to_device(a.address(), from.data(), kBytes);
  copies.copy_to_device(b.address(), from.data(), kBytes);
  copies.record(arrived);
  if (wait) compute.wait(arrived);
  add.launch(compute, {.x = 8}, sum.address(), a.address(), b.address(), kCount);
  compute.copy_to_host(to.data(), sum.address(), kBytes);
  compute.synchronize();
  copies.synchronize();
  return wrong_values(to, 6, 2);
}

void events_order_streams() {
  for (int seed = 0; seed < 5; ++seed) {
    const Setting shake("FAKECUDA_SHAKE", std::to_string(seed) + ":2000");
    expect(add_on_two_streams(open(), true) == 0, "a kernel waits for its copies");
    expect(fake().counter("launches") == 1 && fake().counter("h2d_copies") == 2, "counted work");
    expect_clean("an event between streams");
  }
}

void a_missing_wait_is_found() {
  {
    const Setting slow("FAKECUDA_H2D_BYTES_PER_S", "100000");  // 40 ms a copy
    expect(add_on_two_streams(open(), false) == kCount, "a kernel that does not wait reads NaN");
    expect(fake().counter("violations") > 0, "a missing wait is a violation");
  }
  // Also when the copies happen to come first: what is missing is the order, whatever the timing.
  {
    const ContextPtr context = open();
    const Stream copies(context), compute(context);
    const DeviceMemory a(context, kBytes), sum(context, kBytes);
    const PinnedMemory from(context, kBytes);
    const Kernel add = add_kernel(context);
    copies.copy_to_device(a.address(), from.data(), kBytes);
    while (fake().counter("violations") == 0 && usleep(20000) == 0)
      add.launch(compute, {}, sum.address(), a.address(), a.address(), kCount);
    const std::string text = fake().violation(0);
    for (const char* part : {"fake_add", "reads", "cuMemcpyHtoDAsync_v2", "wrote"})
      expect(text.find(part) != std::string::npos, std::string(part) + " is not in: " + text);
    compute.synchronize();
  }
  expect(fake().leaks() == 0, "leaks after a missing wait");
  fake().reset();
}

void overwriting_too_early_is_found() {
  const ContextPtr context = open();
  const Stream copies(context), compute(context);
  Event done(context);
  const DeviceMemory slot(context, kBytes), sum(context, kBytes);
  const PinnedMemory from(context, kBytes);
  const Kernel add = add_kernel(context);
  const auto use = [&] {
    add.launch(compute, {}, sum.address(), slot.address(), slot.address(), kCount);
    compute.record(done);
  };
  copies.copy_to_device(slot.address(), from.data(), kBytes);
  copies.synchronize();
  use();
  copies.wait(done);
  copies.copy_to_device(slot.address(), from.data(), kBytes);
  copies.synchronize();
  expect(fake().counter("violations") == 0, "a slot is written again after its kernel");
  use();
  copies.copy_to_device(slot.address(), from.data(), kBytes);
  copies.synchronize();
  compute.synchronize();
  // One if the copy comes second, two if the kernel does: it reads the slot twice.
  const int64_t found = fake().counter("violations");
  expect(found == 1 || found == 2,
         "a slot is written again while its kernel may read it: " + std::to_string(found) + " violations");
  for (int64_t i = 0; i < found; ++i) {
    const std::string text = fake().violation(i);
    for (const char* part : {"fake_add", "cuMemcpyHtoDAsync_v2"})
      expect(text.find(part) != std::string::npos, std::string(part) + " is not in: " + text);
  }
  fake().reset();
}

void a_host_that_waited_needs_no_event() {
  {
    const ContextPtr context = open();
    const Stream copies(context), compute(context);
    Event arrived(context);
    const DeviceMemory a(context, kBytes), sum(context, kBytes);
    const PinnedMemory from(context, kBytes);
    const Kernel add = add_kernel(context);
    copies.copy_to_device(a.address(), from.data(), kBytes);
    copies.record(arrived);
    while (!arrived.done()) std::this_thread::yield();
    add.launch(compute, {}, sum.address(), a.address(), a.address(), kCount);
    compute.synchronize();
  }
  expect_clean("polling an event");
}

void events_tell_time_and_sleep() {
  {
    const ContextPtr context = open();
    const Stream stream(context);
    Event begin(context, {.timing = true}), end(context, {.timing = true, .blocking = false});
    const Event never(context);
    expect(never.done(), "an event that was never recorded is done");
    stream.record(begin);
    stream.record(end);
    end.synchronize();
    expect(begin.done() && end.elapsed_ms(begin) >= 0, "time between two events");
    expect_throw<GpuError>([&] { std::ignore = never.elapsed_ms(begin); }, "time without timing",
                           {"CUDA_ERROR_INVALID_HANDLE"});
  }
  expect_clean("timing");
}

void host_functions_run_in_order() {
  {
    const ContextPtr context = open();
    const Stream stream(context);
    std::vector<int> order;
    struct Argument {
      std::vector<int>* order;
      int number;
    };
    Argument first{&order, 1}, second{&order, 2};
    const auto append = [](void* argument) {
      auto* const a = static_cast<Argument*>(argument);
      a->order->push_back(a->number);
    };
    stream.call_on_host(append, &first);
    stream.call_on_host(append, &second);
    stream.synchronize();
    expect(order == std::vector<int>({1, 2}), "host functions run in order");
  }
  expect_clean("host functions");
}

void owners_move() {
  {
    const ContextPtr context = open();
    DeviceMemory first(context, kBytes);
    const DevicePtr address = first.address();
    DeviceMemory second(std::move(first));
    expect(second.address() == address, "a moved owner keeps its memory");
    second = DeviceMemory(context, 2 * kBytes);
    expect(fake().counter("device_allocations") == 1, "assigning frees what was held");
    std::vector<Stream> streams;
    for (int i = 0; i < 5; ++i) streams.emplace_back(context);
    expect(fake().counter("streams") == 5, "streams in a vector");
  }
  expect_clean("moving");
}

void scopes_restore_what_was_current() {
  {
    const Setting two("FAKECUDA_DEVICES", "2");
    const Driver driver = open_driver();
    const ContextPtr mine = Context::open(driver, 0), theirs = Context::open(driver, 1);
    theirs->make_current();
    const Stream stream(theirs);
    const DeviceMemory memory(mine, kBytes);  // makes its own context current for a moment
    stream.fill(memory.address(), 0, 1);
    std::thread([&] {
      expect_throw<GpuError>([&] { stream.synchronize(); }, "a thread without a context",
                             {"CUDA_ERROR_INVALID_CONTEXT"});
      const ContextScope scope(*theirs);
      stream.synchronize();
    }).join();
    expect(fake().counter("violations") == 1, "a call without a context is a violation");
    expect_throw<GpuError>(
        [&] { add_kernel(mine).launch(stream, {}, DevicePtr{0}, DevicePtr{0}, DevicePtr{0}, 0); },
        "a kernel of one context on a stream of another", {"CUDA_ERROR_INVALID_HANDLE"});
    fake().reset();
  }
  expect_clean("two contexts");
}

void borrowed_streams_are_not_destroyed() {
  {
    const ContextPtr context = open();
    const DeviceMemory memory(context, kBytes);
    const StreamView theirs = StreamView::borrow(*context, 0);
    theirs.fill(memory.address(), 0, kBytes);
    theirs.synchronize();
    expect(theirs.idle(), "the default stream");
  }
  expect_clean("a borrowed stream");
}

// --- What is refused

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

// --- Every call fails once

// Waits for the streams before the memory that they work on goes away, also when an exception passes.
struct Finish {
  std::vector<StreamView> streams;
  ~Finish() {
    for (const StreamView& stream : streams) {
      try {
        stream.synchronize();
      } catch (const GpuError&) {
        std::ignore = stream;  // the error that passes has told already
      }
    }
  }
};

// Uses every function of the layer once or more. The caller sees at most one exception.
void scripted_run() {
  const ContextPtr context = open();
  const Stream copies(context), compute(context, -1);
  Event arrived(context), begin(context, {.timing = true}), end(context, {.timing = true});
  DeviceMemory a(context, kBytes), sum(context, kBytes);
  PinnedMemory from(context, kBytes), to(context, kBytes);
  std::vector<float> pageable(kCount, 1.0f);
  const Finish finish{{copies, compute}};
  std::string why_not;
  const auto registered = RegisteredMemory::try_register(context, pageable.data(), kBytes,
                                                         RegisteredMemory::Access::read_write, why_not);
  KernelSpec spec = add_spec();
  spec.shared_bytes = 64 * 1024;
  const Kernel add(std::make_shared<const Module>(context, kAddImage), spec);
  fill(from, 1);
  compute.record(begin);
  copies.copy_to_device(a.address(), from.data(), kBytes);
  copies.record(arrived);
  compute.wait(arrived);
  compute.fill(sum.address(), 0, kBytes);
  add.launch(compute, {.x = 8}, sum.address(), a.address(), a.address(), kCount);
  compute.copy_on_device(a.address(), sum.address(), kBytes);
  compute.copy_to_host(to.data(), a.address(), kBytes);
  compute.call_on_host([](void*) {}, nullptr);
  compute.record(end);
  std::ignore = compute.idle();
  std::ignore = end.done();
  end.synchronize();
  std::ignore = end.elapsed_ms(begin);
  compute.synchronize();
  copies.synchronize();
  std::ignore = context->memory();
  if (wrong_values(to, 2, 2) != 0) throw std::logic_error("wrong values without an error");
}

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// Failures of these are not exceptions: what they give back is lost with the context anyway, or the answer is
// optional.
const std::vector<std::string> kSilent = {
    "cuDevicePrimaryCtxRelease_v2", "cuCtxPopCurrent_v2", "cuMemFree_v2",      "cuMemFreeHost",
    "cuMemHostUnregister",          "cuStreamDestroy_v2", "cuEventDestroy_v2", "cuModuleUnload",
};

void each_call_fails(Result code) {
  // An optional answer; an ordinary refusal; in a destructor; in Finish.
  const std::vector<std::string> may_be_silent = {"cuDeviceGetAttribute", "cuMemHostRegister_v2",
                                                  "cuCtxPushCurrent_v2", "cuStreamSynchronize"};
  fake().reset();
  scripted_run();
  const int64_t calls = fake().calls("*");
  const std::string code_name = open_driver()->error_name(code);
  expect(calls > 100, "the script makes " + std::to_string(calls) + " calls");
  std::vector<std::string> failed;
  for (int64_t position = 1; position <= calls; ++position) {
    fake().reset();
    fake().fail("*", position, code);
    std::string message;
    try {
      scripted_run();
    } catch (const std::logic_error& error) {
      expect(false, error.what());
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
    const char* const name = fake().failed();
    const std::string call = name ? name : "none", what = "call " + std::to_string(position) + ", " + call;
    failed.push_back(call);
    if (message.empty())
      expect(contains(kSilent, call) || contains(may_be_silent, call) || is_sticky(code),
             what + " failed, and nobody was told");
    else if (contains(kSilent, call) || contains(may_be_silent, call))  // the next call tells
      expect(message.find(" returned " + code_name) != std::string::npos, what + ": " + message);
    else
      expect(message.find(call + " returned ") != std::string::npos, what + " failed, but: " + message);
    // The driver refuses to make a context current only when it is broken; then everything is given back.
    if (call == "cuCtxPushCurrent_v2" && !is_sticky(code)) continue;
    expect_clean(what);
  }
#define MOERUN_SEEN(member, symbol, ...) \
  expect(contains(failed, #symbol) || kNotInScript(#symbol), std::string(#symbol) + " never failed");
  const auto kNotInScript = [](const std::string& name) {
    return contains({"cuGetErrorName", "cuCtxSetCurrent"}, name);
  };
  MOERUN_CUDA_FUNCTIONS(MOERUN_SEEN)
#undef MOERUN_SEEN
  fake().reset();
  scripted_run();
  expect_clean("all failures");
}

// --- Many threads

void many_threads() {
  const Setting shake("FAKECUDA_SHAKE", "7:300");
  {
    const ContextPtr context = Context::open(open_driver());
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t)
      threads.emplace_back([&] {
        context->make_current();
        for (int i = 0; i < 10; ++i) expect(add_on_two_streams(context, true) == 0, "many threads");
      });
    for (std::thread& thread : threads) thread.join();
  }
  expect_clean("many threads");
}

struct Group {
  const char* name;
  std::function<void()> run;
};

const Group kGroups[] = {
    {"behaviour",
     [] {
       a_context_knows_its_device();
       copies_move_the_bytes();
       device_memory_is_nan_and_out_of_reach();
       events_order_streams();
       overwriting_too_early_is_found();
       a_host_that_waited_needs_no_event();
       events_tell_time_and_sleep();
       host_functions_run_in_order();
       owners_move();
       scopes_restore_what_was_current();
       borrowed_streams_are_not_destroyed();
     }},
    {"refusals",
     [] {
       memory_that_is_not_there();
       registering_may_be_refused();
       kernels_are_checked();
       a_fault_breaks_the_device_for_good();
       misuse_is_found();
     }},
    {"failures", [] { each_call_fails(kNotSupported); }},
    {"sticky failures", [] { each_call_fails(kIllegalAddress); }},
    {"threads", many_threads},
    {"missing wait", a_missing_wait_is_found},
};

}  // namespace
}  // namespace moerun::cuda

int main(int, char** arguments) {
  using namespace moerun::cuda;
  for (const Group& group : kGroups) {
    if (std::string(arguments[1]) != group.name) continue;
    try {
      group.run();
    } catch (const std::exception& error) {
      expect(false, std::string("an exception came out: ") + error.what());
    }
    std::printf(failures ? "failed\n" : "all good\n");
    return failures ? 1 : 0;
  }
  std::printf("there is no group %s\n", arguments[1]);
  return 2;
}
