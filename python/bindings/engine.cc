// Engine, Layer and Job. Memory comes as addresses that python/moerun/tensors.py has checked; whoever calls
// keeps it alive until the work is done.
#include "src/engine/engine.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "python/bindings/bindings.h"
#include "python/bindings/expert_views.h"
#include "python/bindings/python_engine.h"
#include "src/error.h"
#include "src/expert_store/blob_layout.h"

namespace py = pybind11;

namespace moerun {
namespace {

// The scheduler's thread may drop the last reference to a layer, and with it to its owner.
std::shared_ptr<void> hold(py::object owner) {
  auto* raw = owner.release().ptr();
  return std::shared_ptr<void>(raw, [](void* p) {
    const py::gil_scoped_acquire gil;
    Py_DECREF(static_cast<PyObject*>(p));
  });
}

std::shared_ptr<Layer> add_layer(PythonEngine& engine, int64_t hidden, int64_t inter, int64_t top_k,
                                 WeightFormat format, const ActivationSpec& activation, const Addresses& gate,
                                 const Addresses& up, const Addresses& down, const Strides& gate_up_strides,
                                 const Strides& down_strides, const Biases& gate_bias, const Biases& up_bias,
                                 const Biases& down_bias, const py::object& owner) {
  if (is_quantised(format)) throw InvalidArgument("quantised experts are added as blobs");
  std::vector<ExpertView> experts = expert_views(hidden, inter, gate, up, down, gate_up_strides, down_strides,
                                                 gate_bias, up_bias, down_bias);
  const LayerShape shape{.num_experts = static_cast<int64_t>(gate.size()),
                         .hidden = hidden,
                         .inter = inter,
                         .top_k = top_k,
                         .format = format,
                         .activation = activation,
                         .bias = gate_bias.has_value()};
  return (*engine).add_layer(shape, std::move(experts),
                             hold(py::make_tuple(owner, gate_bias, up_bias, down_bias)));
}

// Experts that lie in blobs (src/expert_store/blob_layout.h).
std::shared_ptr<Layer> add_blobs(PythonEngine& engine, int64_t hidden, int64_t inter, int64_t top_k,
                                 WeightFormat format, const ActivationSpec& activation, bool bias,
                                 const Addresses& blobs, const py::object& owner) {
  const BlobLayout layout = blob_layout(format, hidden, inter, bias);
  std::vector<ExpertView> experts(blobs.size());
  for (py::ssize_t e = 0; e < blobs.size(); ++e) {
    if (blobs.at(e) % kBlobAlignment != 0)
      throw InvalidArgument("blobs must begin at multiples of 256 bytes");
    experts[e] = expert_view(layout, reinterpret_cast<const std::byte*>(blobs.at(e)));
  }
  const LayerShape shape{.num_experts = static_cast<int64_t>(blobs.size()),
                         .hidden = hidden,
                         .inter = inter,
                         .top_k = top_k,
                         .format = format,
                         .activation = activation,
                         .bias = bias};
  return (*engine).add_layer(shape, std::move(experts), hold(owner));
}

cpu::Batch make_batch(int64_t tokens, int64_t top_k, const Rows& x, uintptr_t ids, bool ids_are_64_bit,
                      int64_t ids_stride, const Rows& weights, const Rows& out) {
  cpu::Batch batch;
  batch.x = reinterpret_cast<const void*>(std::get<0>(x));
  batch.x_type = std::get<1>(x);
  batch.x_stride = std::get<2>(x);
  batch.out = reinterpret_cast<void*>(std::get<0>(out));
  batch.out_type = std::get<1>(out);
  batch.out_stride = std::get<2>(out);
  batch.routing = {.ids = reinterpret_cast<const void*>(ids),
                   .ids_are_64_bit = ids_are_64_bit,
                   .ids_stride = ids_stride,
                   .weights = reinterpret_cast<const void*>(std::get<0>(weights)),
                   .weights_type = std::get<1>(weights),
                   .weights_stride = std::get<2>(weights),
                   .tokens = tokens,
                   .top_k = top_k};
  return batch;
}

// [tokens, k]
using Ids = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

// As moerun.policy.fit takes them: (experts, tokens, share, us) and (bytes, us).
using ComputeTuples = std::vector<std::tuple<int64_t, int64_t, double, double>>;
using CopyTuples = std::vector<std::tuple<int64_t, double>>;

ComputeTuples tuples_of(const std::vector<policy::ComputePoint>& points) {
  ComputeTuples out;
  for (const policy::ComputePoint& p : points) out.emplace_back(p.experts, p.tokens, p.share, p.us);
  return out;
}

CopyTuples tuples_of(const std::vector<policy::CopyPoint>& points) {
  CopyTuples out;
  for (const policy::CopyPoint& p : points) out.emplace_back(p.bytes, p.us);
  return out;
}

// Waits in slices, so that Ctrl-C is seen. After work on the device only until it is enqueued: then its
// stream waits.
void wait(const JobRef& job) {
  constexpr std::chrono::milliseconds kSlice{50};
  for (bool done = false; !done;) {
    {
      const py::gil_scoped_release release;
      done = job->wait_for(kSlice);
    }
    if (!done && PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
  job->rethrow();
  if (StreamOrder* order = job->order()) order->join();
}

py::dict to_dict(const LayerStats& s) {
  py::dict d;
  d["batches"] = s.batches;
  d["tokens"] = s.tokens;
  d["weight_bytes"] = s.weight_bytes;
  d["seconds"] = s.seconds;
  d["expert_tokens"] =
      py::array_t<int64_t>(static_cast<py::ssize_t>(s.expert_tokens.size()), s.expert_tokens.data());
  return d;
}

py::dict to_dict(const HybridStats& s) {
  py::dict d;
  d["slots"] = s.slots;
  d["resident"] = s.resident;
  d["cache_bytes"] = s.cache_bytes;
  d["workspace_bytes"] = s.workspace_bytes;
  d["warm_copies"] = s.warm_copies;
  d["shrunk"] = s.shrunk;
  d["steps"] = s.work.steps;
  d["gpu_steps"] = s.work.gpu_steps;
  d["hits"] = s.cache.hits;
  d["misses"] = s.cache.misses;
  d["evictions"] = s.cache.evictions;
  d["copies"] = s.dma.demanded;
  d["copied_bytes"] = s.dma.demanded_bytes;
  d["prefetches"] = s.dma.prefetches;
  d["prefetched_bytes"] = s.dma.prefetched_bytes;
  d["prefetches_completed"] = s.dma.completed;
  d["prefetches_promoted"] = s.dma.promoted;
  d["prefetches_cancelled"] = s.dma.cancelled;
  d["prefetches_used"] = s.cache.prefetch_used;
  d["prefetches_wasted"] = s.cache.prefetch_wasted;
  d["predictions"] = std::vector<int64_t>(s.predictions.made.begin(), s.predictions.made.end());
  d["predictions_correct"] = std::vector<int64_t>(s.predictions.correct.begin(), s.predictions.correct.end());
  d["h2d_bytes_per_second"] = s.dma.bytes_per_second();
  d["planned_seconds"] = s.work.planned_seconds;
  d["observed_seconds"] = s.work.observed_seconds;
  d["cpu_seconds"] = s.work.busy_seconds.cpu;
  d["gpu_seconds"] = s.work.busy_seconds.gpu;
  d["copy_seconds"] = s.work.busy_seconds.copies;
  d["cpu_idle_seconds"] = s.work.idle_seconds.cpu;
  d["gpu_idle_seconds"] = s.work.idle_seconds.gpu;
  d["copy_idle_seconds"] = s.work.idle_seconds.copies;
  return d;
}

py::dict to_dict(const EngineStats& s) {
  py::list layers;
  for (const LayerStats& layer : s.layers) layers.append(to_dict(layer));
  py::dict d;
  d["cpu_threads"] = s.cpu_threads;
  d["isa"] = s.isa;
  d["workspace_bytes"] = s.workspace_bytes;
  d["dense_seconds"] = s.dense_seconds;
  py::dict numa;
  numa["nodes"] = s.numa_nodes;
  numa["placed_bytes"] = s.placement.placed_bytes;
  numa["elsewhere_bytes"] = s.placement.elsewhere_bytes;
  d["numa"] = numa;
  d["layers"] = layers;
  if (s.gpu) d["gpu"] = to_dict(*s.gpu);
  return d;
}

}  // namespace

void bind_engine(py::module_& m) {
  py::enum_<Activation>(m, "Activation")
      .value("silu", Activation::silu)
      .value("gelu", Activation::gelu)
      .value("gelu_tanh", Activation::gelu_tanh)
      .value("relu2", Activation::relu2)
      .value("swiglu_oai", Activation::swiglu_oai);
  py::class_<ActivationSpec>(m, "ActivationSpec")
      .def(py::init<Activation, float, float>(), py::arg("kind"), py::arg("alpha") = 1.702f,
           py::arg("limit") = 7.0f);

  py::class_<Layer, std::shared_ptr<Layer>>(m, "Layer")
      .def_property_readonly("index", &Layer::index)
      .def_property_readonly("expert_bytes", &Layer::expert_bytes);

  py::class_<JobRef>(m, "Job").def("wait", wait).def("done", [](const JobRef& job) {
    return job->wait_for(std::chrono::milliseconds(0));
  });

  py::class_<cpu::Batch>(m, "Batch")
      .def(py::init(&make_batch), py::arg("tokens"), py::arg("top_k"), py::arg("x"), py::arg("ids"),
           py::arg("ids_are_64_bit"), py::arg("ids_stride"), py::arg("weights"), py::arg("out"));

  py::class_<PythonEngine> engine(m, "Engine");
  engine
      .def(
          py::init([](int cpu_threads, std::string isa, std::optional<GpuOptions> gpu) {
            const py::gil_scoped_release release;
            return std::make_unique<PythonEngine>(EngineOptions{cpu_threads, std::move(isa), std::move(gpu)});
          }),
          py::arg("cpu_threads") = 0, py::arg("isa") = "", py::arg("gpu") = std::nullopt)
      .def(
          "load_kernels",
          [](PythonEngine& e, const cuda::CompiledKernels& compiled) {
            return std::const_pointer_cast<cuda::ExpertKernels>((*e).load_kernels(compiled));
          },
          py::arg("compiled"), py::call_guard<py::gil_scoped_release>())
      .def(
          "set_kernels",
          [](PythonEngine& e, const std::shared_ptr<Layer>& layer,
             const std::shared_ptr<cuda::ExpertKernels>& kernels) { (*e).set_kernels(*layer, kernels); },
          py::arg("layer"), py::arg("kernels"), py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("gpu_name",
                             [](PythonEngine& e) -> std::optional<std::string> {
                               if (!(*e).has_gpu()) return std::nullopt;
                               return (*e).gpu()->device().name;
                             })
      .def_property_readonly("gpu_architecture",
                             [](PythonEngine& e) -> std::optional<int> {
                               if (!(*e).has_gpu()) return std::nullopt;
                               const auto context = (*e).gpu();
                               return context->device().compute_major * 10 + context->device().compute_minor;
                             })
      .def(
          "time_cpu",
          [](PythonEngine& e, const std::shared_ptr<Layer>& layer, DType x_type) {
            return tuples_of((*e).time_cpu(*layer, x_type));
          },
          py::arg("layer"), py::arg("x_type"), py::call_guard<py::gil_scoped_release>())
      .def(
          "time_gpu",
          [](PythonEngine& e, const std::shared_ptr<Layer>& layer, DType x_type) {
            return tuples_of((*e).time_gpu(*layer, x_type));
          },
          py::arg("layer"), py::arg("x_type"), py::call_guard<py::gil_scoped_release>())
      .def(
          "time_copies",
          [](PythonEngine& e, const std::shared_ptr<Layer>& layer) {
            return tuples_of((*e).time_copies(*layer));
          },
          py::arg("layer"), py::call_guard<py::gil_scoped_release>())
      .def(
          "set_cost",
          [](PythonEngine& e, const std::shared_ptr<Layer>& layer, const policy::CostModel& cost) {
            (*e).set_cost(*layer, cost);
          },
          py::arg("layer"), py::arg("cost"), py::call_guard<py::gil_scoped_release>())
      .def(
          "cost", [](PythonEngine& e, const std::shared_ptr<Layer>& layer) { return (*e).cost(*layer); },
          py::arg("layer"), py::call_guard<py::gil_scoped_release>())
      .def(
          "warm_start",
          [](PythonEngine& e, const std::shared_ptr<Layer>& layer, const std::vector<double>& shares) {
            (*e).warm_start(*layer, shares);
          },
          py::arg("layer"), py::arg("shares"), py::call_guard<py::gil_scoped_release>())
      .def(
          "start", [](PythonEngine& e) { (*e).start(); }, py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("why_not_pinned", [](PythonEngine& e) { return (*e).why_not_pinned(); })
      .def("add_layer", add_layer, py::arg("hidden"), py::arg("inter"), py::arg("top_k"), py::arg("format"),
           py::arg("activation"), py::arg("gate"), py::arg("up"), py::arg("down"), py::arg("gate_up_strides"),
           py::arg("down_strides"), py::arg("gate_bias"), py::arg("up_bias"), py::arg("down_bias"),
           py::arg("owner"))
      .def("add_blobs", add_blobs, py::arg("hidden"), py::arg("inter"), py::arg("top_k"), py::arg("format"),
           py::arg("activation"), py::arg("bias"), py::arg("blobs"), py::arg("owner"))
      .def(
          "forward",
          [](PythonEngine& e, const std::shared_ptr<Layer>& layer, const cpu::Batch& b) {
            (*e).forward(*layer, b);
          },
          py::arg("layer"), py::arg("batch"), py::call_guard<py::gil_scoped_release>())
      .def("submit", &PythonEngine::submit, py::arg("layer"), py::arg("batch"), py::arg("arrays"),
           py::arg("stream") = std::nullopt)
      .def(
          "keep",
          [](PythonEngine& e, const std::shared_ptr<Layer>& layer, std::vector<int32_t> experts, bool kept) {
            (*e).keep(layer, std::move(experts), kept);
          },
          py::arg("layer"), py::arg("experts"), py::arg("kept"), py::call_guard<py::gil_scoped_release>())
      .def(
          "hint",
          [](PythonEngine& e, const std::shared_ptr<Layer>& layer, const Ids& ids, int32_t distance) {
            const std::span<const int64_t> given(ids.data(), static_cast<size_t>(ids.size()));
            const int64_t k = ids.ndim() == 2 ? ids.shape(1) : 0;
            const py::gil_scoped_release release;
            (*e).hint(layer, given, k, distance);
          },
          py::arg("layer"), py::arg("ids"), py::arg("distance"))
      .def("stats",
           [](PythonEngine& e) {
             EngineStats s;
             {
               const py::gil_scoped_release release;
               s = (*e).stats();
             }
             return to_dict(s);
           })
      .def(
          "write_trace", [](PythonEngine& e, const std::string& path) { (*e).write_trace(path); },
          py::arg("path"), py::call_guard<py::gil_scoped_release>())
      .def("close", &PythonEngine::close)
      .def_property_readonly("closed", [](PythonEngine& e) { return (*e).closed(); });
  bind_dense(m, engine);
}

}  // namespace moerun
