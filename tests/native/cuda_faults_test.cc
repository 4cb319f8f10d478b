// The driver layer: every call of a scripted run fails once, one at a time.
#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/driver_error.h"
#include "src/error.h"
#include "tests/native/adding.h"
#include "tests/native/cuda_groups.h"

namespace moerun::cuda {
namespace {

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
  PinnedMemory from(context, kBytes), to(context, kBytes), flag(context, sizeof(uint32_t));
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
  auto* const word = static_cast<uint32_t*>(flag.data());
  *word = 0;
  compute.write_value(word, 1);
  copies.wait_for_value(word, 1);
  std::ignore = compute.capturing();
  std::ignore = compute.id();
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

}  // namespace

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

}  // namespace moerun::cuda
