// A kernel that adds, and memory with known values: what the tests of the driver layer work with.
#pragma once
#include <memory>
#include <string>

#include "cuda/handles.h"
#include "cuda/kernel.h"
#include "tests/native/stand_in.h"

namespace moerun::cuda {

inline const char* const kAddImage = "function fake_add\n";
constexpr int kCount = 1000;  // floats
constexpr size_t kBytes = kCount * sizeof(float);

inline ContextPtr open(int device = 0) {
  ContextPtr context = Context::open(open_driver(), device);
  context->make_current();
  return context;
}

inline KernelSpec add_spec() {
  return {.name = "fake_add", .threads = 128, .shared_bytes = 0, .parameter_bytes = {8, 8, 8, 4}};
}

inline Kernel add_kernel(const ContextPtr& context) {
  return {std::make_shared<const Module>(context, kAddImage), add_spec()};
}

inline float* floats(const PinnedMemory& memory) {
  return static_cast<float*>(memory.data());
}

inline void fill(const PinnedMemory& memory, float value) {
  for (int i = 0; i < kCount; ++i) floats(memory)[i] = value + static_cast<float>(i);
}

inline int wrong_values(const PinnedMemory& memory, float value, float slope) {
  int wrong = 0;
  for (int i = 0; i < kCount; ++i) wrong += !(floats(memory)[i] == value + slope * static_cast<float>(i));
  return wrong;
}

// sum = a + b, with a and b copied on one stream and the kernel on another. Returns how many values are
// wrong.
inline int add_on_two_streams(const ContextPtr& context, bool wait) {
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

}  // namespace moerun::cuda
