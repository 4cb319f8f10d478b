// Batches on the device through the scheduler's queue and the gate to it: callers' streams wait for what is
// not enqueued yet, and nobody else waits. hybrid_test.cc runs it.
#include "tests/native/hybrid_streams.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "src/error.h"
#include "src/scheduler/scheduler.h"
#include "src/scheduler/stream_gate.h"
#include "tests/native/hybrid_engine.h"

namespace moerun {
namespace {

constexpr int64_t kMostTokens = 4;

// What src/engine makes of the parts, with memory for every batch reserved.
class Queue {
 public:
  explicit Queue(Engine& engine)
      : engine_(engine),
        gate_(engine.hybrid().context(), true),
        scheduler_([this] { return engine_.hybrid().pump(); }) {}

  JobRef submit(int layer, Batch& batch, OnDevice& there) {
    const JobRef job = scheduler_.make([this, layer, &batch, &there](Job& self) {
      Ignore ignore;
      DeviceBatch device = there.view(batch, *self.order());
      device.allocates = self.allocates();
      if (!self.order()->stream_waits()) device.enqueued = [&self] { self.finish_early(); };
      engine_.hybrid().run(layer, device, ignore);
      reserved_ = engine_.hybrid().reserve(layer, DType::f32, kMostTokens) >= kMostTokens;
    });
    gate_.submit(
        scheduler_, job, there.stream(), [this] { return !reserved_; },
        [this](const cuda::StreamView& stream) { return try_out(stream); });
    return job;
  }
  bool try_out(const cuda::StreamView& stream) {
    bool good = false;
    JobRef job = scheduler_.submit([&] {
      engine_.hybrid().context()->make_current();
      good = gate_.go_on_beside(stream, engine_.hybrid().streams());
    });
    finish(job);
    return good;
  }
  static void finish(const JobRef& job) {
    while (!job->wait_for(std::chrono::seconds(1))) continue;
    job->rethrow();
  }
  Scheduler& scheduler() { return scheduler_; }

 private:
  Engine& engine_;
  StreamGate gate_;
  std::atomic<bool> reserved_{false};
  Scheduler scheduler_;  // last: its thread uses all the others
};

// One caller: all batches are given to the stream before any result is asked for.
void call(Engine& engine, Queue& queue, unsigned first_seed, bool waits) {
  constexpr unsigned kBatches = 6;
  std::vector<std::unique_ptr<Batch>> batches;
  std::vector<std::unique_ptr<OnDevice>> there;
  std::vector<JobRef> jobs;
  for (unsigned i = 0; i < kBatches; ++i) {
    batches.push_back(std::make_unique<Batch>(1 + i % kMostTokens, first_seed + i));
    there.push_back(std::make_unique<OnDevice>(engine.hybrid().context(), *batches.back()));
  }
  for (unsigned i = 0; i < kBatches; ++i) {
    jobs.push_back(queue.submit(static_cast<int>(i % kLayers), *batches[i], *there[i]));
    expect(jobs.back()->order()->stream_waits() || !waits,
           "the stream of batch " + std::to_string(i) + " waits");
    if (!jobs.back()->order()->stream_waits()) {
      Queue::finish(jobs.back());
      jobs.back()->order()->join();
    }
  }
  for (unsigned i = 0; i < kBatches; ++i) {
    there[i]->fetch_in_order(*batches[i]);
    expect(Engine::right(static_cast<int>(i % kLayers), *batches[i]),
           "batch " + std::to_string(i) + " of a stream");
  }
  for (const JobRef& job : jobs) Queue::finish(job);
}

void warm_up(Engine& engine, Queue& queue) {
  Batch batch(kMostTokens, 77);
  OnDevice there(engine.hybrid().context(), batch);
  const JobRef job = queue.submit(0, batch, there);
  expect(!job->order()->stream_waits(), "no stream waits while memory is allocated");
  Queue::finish(job);
  job->order()->join();
  there.fetch_in_order(batch);
  Queue::finish(queue.scheduler().submit([] {}));
}

// The streams get past their waits whatever fails, and what was promised is right or has an error.
void failures_let_streams_go() {
  for (const char* call : {"cuLaunchKernel", "cuMemcpyDtoHAsync_v2", "cuStreamWriteValue32_v2",
                           "cuStreamWaitEvent", "cuEventRecord"})
    for (int n = 1; n <= 3; ++n) {
      {
        Engine engine(policy::SplitMethod::ondemand, 3);
        engine.load();
        engine.hybrid().context()->make_current();
        Queue queue(engine);
        warm_up(engine, queue);
        Batch batch(1, 5);
        auto there = std::make_unique<OnDevice>(engine.hybrid().context(), batch);
        expect(queue.try_out(there->stream()), "a stream that may wait");
        fake().fail(call, n, cuda::kInvalidValue);
        bool thrown = false;
        std::optional<JobRef> job;
        try {
          job = queue.submit(0, batch, *there);
          Queue::finish(*job);
        } catch (const GpuError&) {
          thrown = true;
        }
        const std::string what = std::string(call) + ", call " + std::to_string(n);
        if (fake().failed() != nullptr) expect(thrown, what + ": nobody was told");
        there->wait();
        if (thrown) continue;
        there->fetch_in_order(batch);
        expect(Engine::right(0, batch), what);
      }
      fake().reset();
      expect_clean(std::string(call) + " failed");
    }
}

}  // namespace

void streams() {
  for (const int connections : {0, 1}) {
    const Setting shared("FAKECUDA_CONNECTIONS", std::to_string(connections));
    {
      Engine engine(policy::SplitMethod::balanced, 3);
      engine.load();
      engine.hybrid().context()->make_current();
      Queue queue(engine);
      warm_up(engine, queue);
      call(engine, queue, 1, connections == 0);
    }
    expect_clean("streams that wait");
  }
  {
    Engine engine(policy::SplitMethod::ondemand, 3);
    engine.load();
    engine.hybrid().context()->make_current();
    Queue queue(engine);
    warm_up(engine, queue);
    std::vector<std::thread> callers;
    for (unsigned t = 0; t < 3; ++t)
      callers.emplace_back([&, t] {
        engine.hybrid().context()->make_current();
        call(engine, queue, 10 * t, false);
      });
    for (std::thread& caller : callers) caller.join();
  }
  expect_clean("several callers");
  failures_let_streams_go();
}

}  // namespace moerun
