// What an engine with a GPU is made of, as Python gives it: its options, and the compiled kernels of a layer
// (python/moerun/kernels/contract.py).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "cuda/expert_kernels.h"
#include "python/bindings/bindings.h"
#include "src/engine/gpu_store.h"

namespace py = pybind11;

namespace moerun {
namespace {

GpuOptions make_options(int device, const std::string& schedule, const std::string& cache, bool prefetch,
                        int64_t time_every, bool history, bool stream_waits, bool pin,
                        std::optional<int64_t> cache_bytes, std::optional<double> cache_fraction) {
  GpuOptions options{.device = device,
                     .schedule = policy::split_method(schedule),
                     .cache = policy::cache_policy(cache),
                     .prefetch = prefetch,
                     .time_every = time_every,
                     .history = history,
                     .stream_waits = stream_waits,
                     .pin = pin,
                     .budget = {}};
  if (cache_bytes) options.budget = {GpuBudget::Kind::bytes, *cache_bytes, 0};
  if (cache_fraction) options.budget = {GpuBudget::Kind::fraction, 0, *cache_fraction};
  return options;
}

cuda::CompiledKernel make_kernel(std::string function, const py::bytes& image,
                                 std::vector<uint32_t> parameter_bytes, int num_warps, int shared_bytes,
                                 int tile_rows, int tile_tokens, int split) {
  return {.function = std::move(function),
          .image = image,
          .parameter_bytes = std::move(parameter_bytes),
          .num_warps = num_warps,
          .shared_bytes = shared_bytes,
          .tile_rows = tile_rows,
          .tile_tokens = tile_tokens,
          .split = split};
}

cuda::CompiledKernels make_kernels(int64_t hidden, int64_t inter, int64_t top_k, DType x_type,
                                   DType compute_type, int64_t h_stride, int64_t y_stride,
                                   std::vector<cuda::CompiledRegime> regimes, cuda::CompiledKernel combine) {
  return {.hidden = hidden,
          .inter = inter,
          .top_k = top_k,
          .x_type = x_type,
          .compute_type = compute_type,
          .h_stride = h_stride,
          .y_stride = y_stride,
          .regimes = std::move(regimes),
          .combine = std::move(combine)};
}

}  // namespace

void bind_gpu(py::module_& m) {
  py::class_<GpuOptions>(m, "GpuOptions")
      .def(py::init(&make_options), py::kw_only(), py::arg("device") = 0, py::arg("schedule") = "balanced",
           py::arg("cache") = "mrs", py::arg("prefetch") = true, py::arg("time_every") = 1,
           py::arg("history") = false, py::arg("stream_waits") = true, py::arg("pin") = true,
           py::arg("cache_bytes") = std::nullopt, py::arg("cache_fraction") = std::nullopt);

  py::class_<cuda::CompiledKernel>(m, "CompiledKernel")
      .def(py::init(&make_kernel), py::kw_only(), py::arg("function"), py::arg("image"),
           py::arg("parameter_bytes"), py::arg("num_warps"), py::arg("shared_bytes"), py::arg("tile_rows"),
           py::arg("tile_tokens"), py::arg("split"));
  py::class_<cuda::CompiledRegime>(m, "CompiledRegime")
      .def(py::init([](int tile_tokens, cuda::CompiledKernel gate_up, cuda::CompiledKernel down,
                       std::optional<cuda::CompiledKernel> activate) {
             return cuda::CompiledRegime{.tile_tokens = tile_tokens,
                                         .gate_up = std::move(gate_up),
                                         .down = std::move(down),
                                         .activate = std::move(activate)};
           }),
           py::kw_only(), py::arg("tile_tokens"), py::arg("gate_up"), py::arg("down"), py::arg("activate"));
  py::class_<cuda::CompiledKernels>(m, "CompiledKernels")
      .def(py::init(&make_kernels), py::kw_only(), py::arg("hidden"), py::arg("inter"), py::arg("top_k"),
           py::arg("x_type"), py::arg("compute_type"), py::arg("h_stride"), py::arg("y_stride"),
           py::arg("regimes"), py::arg("combine"));
  py::class_<cuda::ExpertKernels, std::shared_ptr<cuda::ExpertKernels>>(m, "ExpertKernels");
}

}  // namespace moerun
