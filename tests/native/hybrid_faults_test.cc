// Every call to the driver fails once, one at a time, at every position of a scripted run: create, load,
// step, predict, evict, close. Each failure comes out of the verb that made the call, as one exception that
// names it; or it is one of those that must be silent. No result is wrong, nothing is left behind, and the
// same process runs the next script, with a new engine.
#include "tests/native/hybrid_faults.h"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "cuda/driver_error.h"
#include "src/error.h"
#include "tests/native/hybrid_engine.h"

namespace moerun {
namespace {

constexpr const char* kFunctions[] = {
#define MOERUN_NAME(member, symbol, ...) #symbol,
    MOERUN_CUDA_FUNCTIONS(MOERUN_NAME) MOERUN_CUDA_OPTIONAL_FUNCTIONS(MOERUN_NAME)
#undef MOERUN_NAME
};
using Counts = std::vector<int64_t>;  // of calls of each function

Counts calls_made() {
  Counts counts;
  for (const char* function : kFunctions) counts.push_back(fake().calls(function));
  return counts;
}

// What became of a script.
struct Outcome {
  int results = 0;  // batches that gave a result, all of them right
  int64_t evictions = 0;
  std::string verb, error;  // the first that threw, and what
  int errors = 0;
  std::string passed_over;      // the verb in which a call failed and nothing was thrown
  Counts loaded, stepped, all;  // calls until the end of "load", of the last step, of everything
};

// Runs one verb of the engine. False if it threw.
template <class Verb>
bool attempt(Outcome& outcome, const char* name, Verb&& verb) {
  const bool failed_before = fake().failed() != nullptr;
  std::string error;
  try {
    verb();
  } catch (const GpuError& e) {
    error = e.what();
  } catch (const GpuUnavailable& e) {
    error = e.what();
  }
  if (error.empty()) {
    if (!failed_before && fake().failed() != nullptr) outcome.passed_over = name;
    return true;
  }
  if (outcome.errors++ == 0) {
    outcome.verb = name;
    outcome.error = error;
  }
  return false;
}

constexpr int kBatches = 3, kResults = kBatches + 2;

// Few slots, so that experts are evicted, and both layers; on demand everything runs on the GPU, with the
// static schedule a part on the CPU.
Outcome script(policy::SplitMethod schedule) {
  Outcome outcome;
  std::unique_ptr<Engine> engine;
  if (!attempt(outcome, "create", [&] { engine = std::make_unique<Engine>(schedule, 3); })) return outcome;
  if (attempt(outcome, "load", [&] { engine->load(); })) {
    outcome.loaded = calls_made();
    for (unsigned seed = 0; seed < kBatches; ++seed) {
      const int layer = static_cast<int>(seed % kLayers);
      Batch batch(1 + seed % 2, seed);
      if (attempt(outcome, "step", [&] { engine->run(layer, batch); })) {
        expect(Engine::right(layer, batch), "a batch that did not throw");
        ++outcome.results;
      }
      attempt(outcome, "predict", [&] { engine->hint(1 - layer, seed); });
      attempt(outcome, "between steps", [&] {
        while (seed == 0 && engine->hybrid().pump()) continue;
      });
    }
    Batch batch(2, kBatches);
    std::unique_ptr<OnDevice> there;
    if (attempt(outcome, "put",
                [&] { there = std::make_unique<OnDevice>(engine->hybrid().context(), batch); }) &&
        attempt(outcome, "device step", [&] { engine->run(0, batch, *there); }) &&
        attempt(outcome, "fetch", [&] { there->fetch(batch); })) {
      expect(Engine::right(0, batch), "a batch on the device that did not throw");
      ++outcome.results;
    }
    there.reset();
    // What goes wrong on the device after that is told by the next batch.
    Batch last(1, kBatches + 1);
    if (attempt(outcome, "last step", [&] { engine->run(0, last); })) {
      expect(Engine::right(0, last), "a batch after one on the device");
      ++outcome.results;
    }
    outcome.evictions = engine->hybrid().stats().cache.evictions;
  }
  outcome.stepped = calls_made();
  attempt(outcome, "close", [&] { engine.reset(); });
  outcome.all = calls_made();
  return outcome;
}

bool is_any(const std::string& name, const std::vector<std::string>& names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// Where a failure changes nothing that the caller could see. Everything else is thrown.
bool may_be_silent(const std::string& call, const std::string& verb, cuda::Result code) {
  // What gives back; a release makes the context current first.
  if (is_any(call,
             {"cuMemFree_v2", "cuMemFreeHost", "cuEventDestroy_v2", "cuStreamDestroy_v2", "cuModuleUnload",
              "cuDevicePrimaryCtxRelease_v2", "cuCtxPopCurrent_v2", "cuCtxPushCurrent_v2"}))
    return true;
  if (verb == "close") return true;                             // a destructor
  if (verb == "between steps") return true;                     // prefetches: the cache is empty then
  if (call == "cuDeviceGetAttribute") return true;              // optional ones
  if (call == "cuMemHostAlloc" && verb == "load") return true;  // the experts are not pinned then
  // Tried once more, with a smaller cache; what is late has no more to try.
  return verb.find("step") != std::string::npos && code == cuda::kOutOfMemory;
}

// Returns whether the call was made: how often events are polled is a matter of time.
bool one_fault(policy::SplitMethod schedule, const std::string& call, int64_t n, cuda::Result code) {
  fake().reset();
  fake().fail(call.c_str(), n, code);
  const Outcome outcome = script(schedule);
  const bool made = fake().failed() != nullptr, sticky = cuda::is_sticky(code);
  const std::string what =
      call + ", call " + std::to_string(n) + ", returned " + std::to_string(code) + " in " + outcome.verb;
  if (outcome.errors > 0) {
    // After a sticky one that was passed over, the next call tells.
    const bool late = sticky && (!outcome.passed_over.empty() || call == "cuStreamSynchronize" ||
                                 may_be_silent(call, outcome.verb, code));
    const std::string named = (late ? "" : call) + " returned ";
    expect(outcome.error.find(named) != std::string::npos, what + ": " + outcome.error);
    expect(outcome.errors == 1 || sticky, what + ", and more went wrong: " + outcome.error);
  }
  if (outcome.passed_over == "device step" && outcome.errors > 0) {
    expect(sticky || outcome.error.find("an earlier batch") != std::string::npos,
           what + ": " + outcome.error);
  } else if (!outcome.passed_over.empty()) {
    expect(may_be_silent(call, outcome.passed_over, code),
           what + "nothing: nobody was told of it in " + outcome.passed_over);
  }
  if (!is_any(outcome.verb, {"create", "load"}) && !sticky)
    expect(outcome.results >= kResults - 1, what + ": the engine did not go on");
  fake().reset();
  expect_clean(what);
  return made;
}

enum class Where : uint8_t { everywhere, in_steps };

void all_faults(policy::SplitMethod schedule, Where where, cuda::Result code, int64_t step) {
  fake().reset();
  const Outcome sound = script(schedule);
  expect(sound.results == kResults && sound.errors == 0, "the script without a fault: " + sound.error);
  expect(sound.evictions > 0 || where == Where::in_steps, "the script evicts nothing");
  // Made again and again as long as something takes, always at the same two places.
  constexpr int64_t kEnoughPolls = 40;
  int64_t tried = 0, made = 0;
  for (size_t f = 0; f < std::size(kFunctions); ++f) {
    const std::string call = kFunctions[f];
    if (call == "cuGetErrorName") continue;  // an error is then told without its name
    const int64_t first = where == Where::in_steps ? sound.loaded[f] : 0;
    int64_t last = where == Where::in_steps ? sound.stepped[f] : sound.all[f];
    if (is_any(call, {"cuEventQuery", "cuCtxSetCurrent"})) last = std::min(last, first + kEnoughPolls);
    for (int64_t n = first + 1 + tried % step; n <= last; n += step) {
      ++tried;
      made += one_fault(schedule, call, n, code);
    }
  }
  expect(made >= tried * 9 / 10,
         "of " + std::to_string(tried) + " failures only " + std::to_string(made) + " happened");
  expect(script(schedule).results == kResults, "a new engine after the faults");
  fake().reset();
}

}  // namespace

void faults(int64_t step) {
  using policy::SplitMethod;
  all_faults(SplitMethod::ondemand, Where::everywhere, cuda::kNotSupported, step);
  all_faults(SplitMethod::static_, Where::in_steps, cuda::kNotSupported, step);
  all_faults(SplitMethod::ondemand, Where::everywhere, cuda::kIllegalAddress, 2 * step);
  all_faults(SplitMethod::ondemand, Where::in_steps, cuda::kOutOfMemory, step);
}

}  // namespace moerun
