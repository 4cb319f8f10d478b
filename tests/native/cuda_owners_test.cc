// The driver layer: contexts, memory, copies, and owners that move.
#include <unistd.h>
#include <cerrno>
#include <cmath>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/native/adding.h"
#include "tests/native/cuda_groups.h"

namespace moerun::cuda {
namespace {

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

}  // namespace

void owners() {
  a_context_knows_its_device();
  copies_move_the_bytes();
  device_memory_is_nan_and_out_of_reach();
  owners_move();
  scopes_restore_what_was_current();
  borrowed_streams_are_not_destroyed();
}

}  // namespace moerun::cuda
