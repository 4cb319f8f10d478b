// HybridForward on the stand-in driver, without Python, so that the sanitizers see all of it: every schedule
// against the CPU alone, prefetches that come true or die, recovery, too little memory, and (in
// hybrid_faults_test.cc) every call to the driver failing once. test_hybrid.py compiles it plain and under
// sanitizers. Arguments: the folder of a fake OpenMP runtime, a group of tests. Prints what is wrong and
// returns 1.
#include <cstdlib>
#include <string>

#include "src/error.h"
#include "tests/native/hybrid_engine.h"
#include "tests/native/hybrid_faults.h"

namespace moerun {
namespace {

const policy::SplitMethod kSchedules[] = {policy::SplitMethod::ondemand, policy::SplitMethod::static_,
                                          policy::SplitMethod::balanced, policy::SplitMethod::hybrimoe,
                                          policy::SplitMethod::gpu,      policy::SplitMethod::cpu};

// Few slots, many tokens: steps that fill a slot several times are among them.
void schedules() {
  for (const policy::SplitMethod schedule : kSchedules)
    for (const bool pin : {true, false}) {
      {
        Engine engine(schedule, schedule == policy::SplitMethod::gpu ? kLayers * kExperts : 3);
        engine.load(pin);
        for (unsigned seed = 0; seed < 12; ++seed) {
          const int layer = static_cast<int>(seed % kLayers);
          Batch batch(seed % 3 == 2 ? 30 : 1, seed);
          engine.hint(1 - layer, seed);
          if (seed % 4 == 3) {
            OnDevice there(engine.hybrid().context(), batch);
            engine.run(layer, batch, there);
            there.fetch(batch);
          } else {
            engine.run(layer, batch);
          }
          expect(Engine::right(layer, batch), "schedule " + std::to_string(static_cast<int>(schedule)) +
                                                  ", batch " + std::to_string(seed));
          while (seed % 4 == 0 && engine.hybrid().pump()) continue;
        }
        const HybridStats s = engine.hybrid().stats();
        expect(s.dma.prefetches == s.dma.completed + s.dma.cancelled + s.dma.promoted ||
                   schedule == policy::SplitMethod::cpu || engine.hybrid().pump(),
               "prefetches end in one way");
      }
      expect_clean("a schedule");
    }
}

// An engine goes on after an error that it can recover from, and says the first cause after any other.
void recovery() {
  {
    Engine engine(policy::SplitMethod::ondemand, 4);
    engine.load();
    Batch batch(3, 1);
    engine.run(0, batch);
    for (const char* call :
         {"cuLaunchKernel", "cuMemcpyHtoDAsync_v2", "cuEventRecord", "cuStreamWaitEvent"}) {
      fake().fail(call, 1, 1);
      bool thrown = false;
      try {
        engine.run(0, batch);
      } catch (const GpuError& error) {
        thrown = std::string(error.what()).find("INVALID_VALUE") != std::string::npos;
      }
      expect(thrown, std::string("an error of ") + call);
      engine.run(0, batch);
      expect(Engine::right(0, batch), std::string("a batch after an error of ") + call);
    }
    fake().fail("kernel", 1, 700);
    std::string first, second;
    try {
      engine.run(0, batch);
    } catch (const GpuError& error) {
      first = error.what();
    }
    try {
      engine.run(0, batch);
    } catch (const GpuError& error) {
      second = error.what();
    }
    expect(!first.empty() && second.find(first) != std::string::npos, "the first cause: " + second);
  }
  fake().reset();
  expect_clean("recovery");
}

void memory() {
  setenv("FAKECUDA_MEMORY", std::to_string(14 * layout().bytes).c_str(), 1);
  fake().reset();
  {
    Engine engine(policy::SplitMethod::ondemand, 12);
    engine.load();
    Batch one(1, 1), many(400, 2);
    engine.run(0, one);
    expect(engine.hybrid().stats().slots == 12, "twelve slots");
    engine.run(0, many);  // needs memory that the cache has
    expect(Engine::right(0, many), "a batch that the cache made room for");
    const HybridStats s = engine.hybrid().stats();
    expect(s.shrunk > 0 && s.slots < 12 && s.slots > 0, "a smaller cache");
    engine.run(0, one);
    expect(Engine::right(0, one), "a batch after that");
  }
  unsetenv("FAKECUDA_MEMORY");
  fake().reset();
  expect_clean("too little memory");
}

}  // namespace
}  // namespace moerun

int main(int, char** arguments) {
  using namespace moerun;
  cpu::set_openmp_hint(arguments[1]);
  return run_group(arguments[2], {{"schedules", schedules},
                                  {"recovery", recovery},
                                  {"memory", memory},
                                  {"faults", [] { faults(1); }},
                                  {"some faults", [] { faults(kSomeFaults); }}});
}
