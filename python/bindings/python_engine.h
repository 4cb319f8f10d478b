// The engine as Python holds it, for the bindings that add methods to it.
#pragma once
#include <pybind11/pybind11.h>

#include <deque>
#include <tuple>
#include <utility>

#include "src/engine/engine.h"

namespace moerun {

namespace py = pybind11;

// (address, type, elements from row to row)
using Rows = std::tuple<uintptr_t, DType, int64_t>;

// An engine, and the arrays of submitted batches: they must live until the work is done, also if the caller
// drops the handle before. Guarded by the GIL.
class PythonEngine {
 public:
  explicit PythonEngine(const EngineOptions& options) : engine_(options) {}

  // Joining the scheduler's thread while holding the GIL could deadlock with hold().
  ~PythonEngine() {
    const py::gil_scoped_release release;
    engine_.close();
  }

  Engine& operator*() { return engine_; }

  void close() {
    {
      const py::gil_scoped_release release;
      engine_.close();
    }
    const auto done = std::move(submitted_);
  }

  // With a stream, the arrays lie on the device.
  JobRef submit(const std::shared_ptr<Layer>& layer, const cpu::Batch& batch, py::object arrays,
                std::optional<uintptr_t> stream) {
    while (!submitted_.empty() && submitted_.front().first->wait_for(std::chrono::milliseconds(0))) {
      const auto done =
          std::move(submitted_.front());  // its arrays go after it left the queue: that may run anything
      submitted_.pop_front();
      if (StreamOrder* order = done.first->order()) order->join();  // before their memory is used again
    }
    const JobRef job = [&] {
      const py::gil_scoped_release release;
      return stream ? engine_.submit(layer, batch, *stream) : engine_.submit(layer, batch);
    }();
    submitted_.emplace_back(job, std::move(arrays));
    return job;
  }

 private:
  std::deque<std::pair<JobRef, py::object>> submitted_;  // in the order of submission, nearly
  Engine engine_;
};

// What stands around the experts: matrices, attention, routers, norms.
void bind_dense(py::module_& m, py::class_<PythonEngine>& engine);

}  // namespace moerun
