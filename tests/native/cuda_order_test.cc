// The driver layer: streams, events between them, and what is found where one is missing.
#include <unistd.h>
#include <atomic>
#include <cstdint>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "tests/native/adding.h"
#include "tests/native/cuda_groups.h"

namespace moerun::cuda {
namespace {

void events_order_streams() {
  for (int seed = 0; seed < 5; ++seed) {
    const Setting shake("FAKECUDA_SHAKE", std::to_string(seed) + ":2000");
    expect(add_on_two_streams(open(), true) == 0, "a kernel waits for its copies");
    expect(fake().counter("launches") == 1 && fake().counter("h2d_copies") == 2, "counted work");
    expect_clean("an event between streams");
  }
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

// A stream waits for what is not enqueued yet, and comes behind what the value was written behind.
void values_order_streams() {
  for (int seed = 0; seed < 5; ++seed) {
    const Setting shake("FAKECUDA_SHAKE", std::to_string(seed) + ":2000");
    {
      const ContextPtr context = open();
      const Stream copies(context), compute(context), third(context);
      Event computed(context);
      const DeviceMemory a(context, kBytes), sum(context, kBytes);
      const PinnedMemory from(context, kBytes), to(context, kBytes), flag(context, sizeof(uint32_t));
      const Kernel add = add_kernel(context);
      auto* const word = static_cast<uint32_t*>(flag.data());
      *word = UINT32_MAX;
      fill(from, 3);
      compute.wait_for_value(word, 0);  // comes after UINT32_MAX
      add.launch(compute, {.x = 8}, sum.address(), a.address(), a.address(), kCount);
      compute.record(computed);
      third.wait(computed);
      third.copy_to_host(to.data(), sum.address(), kBytes);
      expect(!compute.idle(), "a stream waits for a value that nobody has written");
      copies.copy_to_device(a.address(), from.data(), kBytes);
      copies.write_value(word, 0);
      third.synchronize();
      expect(wrong_values(to, 6, 2) == 0, "values behind a value that a stream wrote");

      compute.wait_for_value(word, 7);
      compute.fill(a.address(), 0, kBytes);
      std::atomic_ref(*word).store(8, std::memory_order_release);
      compute.synchronize();
    }
    expect_clean("values between streams");
  }
}

void allocating_while_a_stream_waits_is_found() {
  {
    const ContextPtr context = open();
    const Stream stream(context), other(context);
    const PinnedMemory flag(context, sizeof(uint32_t));
    auto* const word = static_cast<uint32_t*>(flag.data());
    *word = 0;
    stream.wait_for_value(word, 1);
    {
      const DeviceMemory fine(context, kBytes);
    }  // nobody waits for this thread, as far as can be told
    expect(fake().counter("violations") == 0, "memory of others");
    other.write_value(word, 0);
    {
      const DeviceMemory memory(context, kBytes);
    }
    expect(fake().counter("violations") == 2, "memory while a stream waits for this thread");
    const std::string text = fake().violation(0);
    expect(text.find("cuMemAlloc_v2") != std::string::npos, text);
    other.write_value(word, 1);
    stream.synchronize();
    other.synchronize();
    {
      const DeviceMemory memory(context, kBytes);
    }
    expect(fake().counter("violations") == 2, "memory when the stream has gone on");
  }
  expect(fake().leaks() == 0, "leaks after waits for values");
  fake().reset();
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

}  // namespace

void order() {
  events_order_streams();
  a_host_that_waited_needs_no_event();
  values_order_streams();
  std::thread(allocating_while_a_stream_waits_is_found).join();  // the thread is one that streams wait for
  events_tell_time_and_sleep();
  host_functions_run_in_order();
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

}  // namespace moerun::cuda
