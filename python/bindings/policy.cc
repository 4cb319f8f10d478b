// moerun._core.policy: the policies of src/policy, for tests and the replay. Checks dtypes and shapes once,
// then calls.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "python/bindings/bindings.h"
#include "src/error.h"
#include "src/policy/cost_model.h"
#include "src/policy/evict.h"
#include "src/policy/hybrimoe.h"
#include "src/policy/prefetch.h"
#include "src/policy/score.h"
#include "src/policy/split.h"

namespace py = pybind11;

namespace moerun {
namespace {

using policy::CostModel;
using policy::Plan;

using IntArray = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;
using BoolArray = py::array_t<bool, py::array::c_style | py::array::forcecast>;
using FloatArray64 = py::array_t<double, py::array::c_style | py::array::forcecast>;
using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;

void require_1d(const py::array& array, const char* what) {
  if (array.ndim() != 1) {
    throw InvalidArgument(std::string(what) +
                          " must be a one-dimensional array with one entry per expert, got " +
                          std::to_string(array.ndim()) + " dimensions");
  }
}

py::array array_from(const py::object& given, const char* what) {
  py::array array = py::array::ensure(given);
  if (!array) {
    PyErr_Clear();
    throw py::type_error(std::string(what) + " must be an array with one entry per expert");
  }
  require_1d(array, what);
  return array;
}

// Integers of any width; floats would be truncated silently.
std::span<const int32_t> loads_of(const py::object& given, IntArray& keep) {
  const py::array array = array_from(given, "loads");
  if (array.size() > 0 && array.dtype().kind() != 'i' && array.dtype().kind() != 'u') {
    throw py::type_error("loads must be an integer array (tokens per expert), got dtype " +
                         py::str(array.dtype()).cast<std::string>());
  }
  keep = IntArray(array);
  return {keep.data(), static_cast<size_t>(keep.size())};
}

std::span<const uint8_t> flags_of(const py::object& given, const char* what, BoolArray& keep) {
  keep = BoolArray(array_from(given, what));
  static_assert(sizeof(bool) == 1);
  return {reinterpret_cast<const uint8_t*>(keep.data()), static_cast<size_t>(keep.size())};
}

std::span<const float> scores_of(const FloatArray& scores, size_t num_experts) {
  if (scores.ndim() != 2 || static_cast<size_t>(scores.shape(1)) != num_experts) {
    throw InvalidArgument("scores must have shape [tokens, " + std::to_string(num_experts) + "]");
  }
  return {scores.data(), static_cast<size_t>(scores.size())};
}

template <typename T>
py::array_t<T> array_of(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::array_t<double> array_of(std::span<const double> values) {
  return py::array_t<double>(static_cast<py::ssize_t>(values.size()), values.data());
}

std::vector<std::tuple<int32_t, double, double>> tuples_of(const std::vector<policy::Interval>& intervals) {
  std::vector<std::tuple<int32_t, double, double>> out;
  out.reserve(intervals.size());
  for (const policy::Interval& i : intervals) out.emplace_back(i.expert, i.begin_us, i.end_us);
  return out;
}

// Plans with memory of its own, so that a loop of calls allocates little; one per thread.
class Splitter {
 public:
  Plan split(const py::object& loads, const py::object& resident, const CostModel& cost,
             const std::string& method, double shared_gpu_us, bool allow_fraction,
             std::optional<bool> prefill, bool partial_copy, double copy_price, double share_step) {
    IntArray keep_loads;
    BoolArray keep_resident;
    const policy::SplitRequest request{loads_of(loads, keep_loads),
                                       flags_of(resident, "resident", keep_resident),
                                       cost,
                                       shared_gpu_us,
                                       allow_fraction,
                                       partial_copy,
                                       copy_price,
                                       share_step};
    const auto phase = !prefill   ? policy::Phase::unknown
                       : *prefill ? policy::Phase::prefill
                                  : policy::Phase::decode;
    Plan plan;
    policy::split(policy::split_method(method), request, scratch_, plan, phase);
    return plan;
  }

 private:
  policy::SplitScratch scratch_;
};

std::vector<std::pair<std::string, int32_t>> hybrimoe_order(const py::object& loads,
                                                            const py::object& resident, const CostModel& cost,
                                                            double shared_gpu_us) {
  IntArray keep_loads;
  BoolArray keep_resident;
  const policy::SplitRequest request{
      loads_of(loads, keep_loads), flags_of(resident, "resident", keep_resident), cost, shared_gpu_us, false};
  policy::check(request);
  policy::ActiveExperts active;
  active.assign(request);
  Plan plan;
  std::vector<policy::Commit> commits;
  policy::hybrimoe(request, active, plan, &commits);
  std::vector<std::pair<std::string, int32_t>> out;
  for (const policy::Commit& c : commits) {
    out.emplace_back(c.lane == policy::Lane::cpu   ? "cpu"
                     : c.lane == policy::Lane::gpu ? "gpu"
                                                   : "copy",
                     c.expert);
  }
  return out;
}

policy::Resource resource_of(const std::string& name) {
  if (name == "cpu") return policy::Resource::cpu;
  if (name == "gpu") return policy::Resource::gpu;
  if (name == "copy") return policy::Resource::copy;
  throw InvalidArgument("resource \"" + name + "\" is unknown; known: cpu, gpu, copy");
}

void bind_cost_model(py::module_& m) {
  py::class_<CostModel>(m, "CostModel")
      .def(py::init([](double cpu_first_us, double cpu_expert_us, double cpu_token_us, double gpu_expert_us,
                       double gpu_token_us, double copy_us, double cpu_part_us, double gpu_part_us) {
             const CostModel cost{cpu_first_us, cpu_expert_us, cpu_token_us, gpu_expert_us,
                                  gpu_token_us, copy_us,       cpu_part_us,  gpu_part_us};
             policy::check(cost);
             return cost;
           }),
           py::arg("cpu_first_us"), py::arg("cpu_expert_us"), py::arg("cpu_token_us"),
           py::arg("gpu_expert_us"), py::arg("gpu_token_us"), py::arg("copy_us"),
           py::arg("cpu_part_us") = 0.0, py::arg("gpu_part_us") = 0.0)
      .def_readonly("cpu_first_us", &CostModel::cpu_first_us)
      .def_readonly("cpu_expert_us", &CostModel::cpu_expert_us)
      .def_readonly("cpu_token_us", &CostModel::cpu_token_us)
      .def_readonly("gpu_expert_us", &CostModel::gpu_expert_us)
      .def_readonly("gpu_token_us", &CostModel::gpu_token_us)
      .def_readonly("copy_us", &CostModel::copy_us)
      .def_readonly("cpu_part_us", &CostModel::cpu_part_us)
      .def_readonly("gpu_part_us", &CostModel::gpu_part_us)
      .def("__repr__", [](const CostModel& c) {
        return py::str(
                   "CostModel(cpu_first_us={:.6g}, cpu_expert_us={:.6g}, cpu_token_us={:.6g}, "
                   "gpu_expert_us={:.6g}, "
                   "gpu_token_us={:.6g}, copy_us={:.6g}, cpu_part_us={:.6g}, gpu_part_us={:.6g})")
            .format(c.cpu_first_us, c.cpu_expert_us, c.cpu_token_us, c.gpu_expert_us, c.gpu_token_us,
                    c.copy_us, c.cpu_part_us, c.gpu_part_us);
      });
  py::class_<policy::Calibration>(m, "Calibration")
      .def_readonly("cost", &policy::Calibration::cost)
      .def_readonly("copy_fixed_us", &policy::Calibration::copy_fixed_us)
      .def_readonly("copy_byte_us", &policy::Calibration::copy_byte_us)
      .def_readonly("cpu_residual", &policy::Calibration::cpu_residual)
      .def_readonly("gpu_residual", &policy::Calibration::gpu_residual)
      .def_readonly("copy_residual", &policy::Calibration::copy_residual);
  m.def(
      "fit",
      [](const std::vector<std::tuple<int64_t, int64_t, double, double>>& cpu,
         const std::vector<std::tuple<int64_t, int64_t, double, double>>& gpu,
         const std::vector<std::pair<int64_t, double>>& copies, int64_t expert_bytes) {
        std::vector<policy::ComputePoint> cpu_points, gpu_points;
        std::vector<policy::CopyPoint> copy_points;
        for (const auto& [experts, tokens, share, us] : cpu)
          cpu_points.push_back({experts, tokens, share, us});
        for (const auto& [experts, tokens, share, us] : gpu)
          gpu_points.push_back({experts, tokens, share, us});
        for (const auto& [bytes, us] : copies) copy_points.push_back({bytes, us});
        return policy::fit(cpu_points, gpu_points, copy_points, expert_bytes);
      },
      py::arg("cpu"), py::arg("gpu"), py::arg("copies"), py::arg("expert_bytes"));
  m.def(
      "refresh",
      [](const CostModel& cost, const std::string& resource, double planned_us, double observed_us,
         double rate) { return policy::refresh(cost, resource_of(resource), planned_us, observed_us, rate); },
      py::arg("cost"), py::arg("resource"), py::arg("planned_us"), py::arg("observed_us"), py::arg("rate"));
}

void bind_split(py::module_& m) {
  py::class_<Plan>(m, "Plan")
      .def_property_readonly("cpu", [](const Plan& p) { return array_of(p.cpu); })
      .def_property_readonly("gpu", [](const Plan& p) { return array_of(p.gpu); })
      .def_property_readonly("copy", [](const Plan& p) { return array_of(p.copy); })
      .def_property_readonly("cpu_fraction", [](const Plan& p) { return array_of(p.cpu_fraction); })
      .def_property_readonly("copy_fraction", [](const Plan& p) { return array_of(p.copy_fraction); })
      .def_readonly("makespan_us", &Plan::makespan_us)
      .def_property_readonly("cpu_intervals", [](const Plan& p) { return tuples_of(p.cpu_intervals); })
      .def_property_readonly("gpu_intervals", [](const Plan& p) { return tuples_of(p.gpu_intervals); })
      .def_property_readonly("copy_intervals", [](const Plan& p) { return tuples_of(p.copy_intervals); });
  py::class_<Splitter>(m, "Splitter")
      .def(py::init<>())
      .def("split", &Splitter::split, py::arg("loads"), py::arg("resident"), py::arg("cost"),
           py::arg("method") = "balanced", py::arg("shared_gpu_us") = 0.0, py::arg("allow_fraction") = true,
           py::arg("prefill") = std::nullopt, py::arg("partial_copy") = false, py::arg("copy_price") = 0.0,
           py::arg("share_step") = 0.0);
  m.def("hybrimoe_order", &hybrimoe_order, py::arg("loads"), py::arg("resident"), py::arg("cost"),
        py::arg("shared_gpu_us") = 0.0);
  m.attr("COPY_PRICE") = policy::kCopyPrice;
  m.attr("METHODS") = py::tuple(py::cast(policy::split_method_names()));
}

void bind_cache(py::module_& m) {
  py::class_<policy::MrsScore>(m, "MrsScore")
      .def(py::init([](int32_t num_experts, int32_t top_k, double alpha, std::optional<int32_t> score_top_p) {
             if (score_top_p == 0)
               throw InvalidArgument("MrsScore: score_top_p is 0; it must lie within 1..num_experts");
             return policy::MrsScore(num_experts, top_k, alpha, score_top_p.value_or(0));
           }),
           py::arg("num_experts"), py::arg("top_k"), py::arg("alpha") = policy::kMrsAlpha,
           py::arg("score_top_p") = std::nullopt)
      .def(
          "update",
          [](policy::MrsScore& self, const FloatArray& scores) {
            self.update(scores_of(scores, self.values().size()));
          },
          py::arg("scores"))
      .def_property_readonly("values", [](const policy::MrsScore& self) { return array_of(self.values()); });

  py::class_<policy::CacheValues>(m, "CacheValues")
      .def(py::init([](const std::string& name, int32_t num_experts, int32_t top_k, double alpha,
                       std::optional<int32_t> score_top_p) {
             return policy::CacheValues(
                 {policy::cache_policy(name), num_experts, top_k, alpha, score_top_p.value_or(0)});
           }),
           py::arg("policy"), py::arg("num_experts"), py::arg("top_k"),
           py::arg("alpha") = policy::kTunedAlpha, py::arg("score_top_p") = std::nullopt)
      .def(
          "observe",
          [](policy::CacheValues& self, const py::object& loads, const std::optional<FloatArray>& scores) {
            IntArray keep;
            self.observe(loads_of(loads, keep),
                         scores ? scores_of(*scores, self.values().size()) : std::span<const float>());
          },
          py::arg("loads"), py::arg("scores") = std::nullopt)
      .def(
          "start", [](policy::CacheValues& self, const std::vector<double>& shares) { self.start(shares); },
          py::arg("shares"))
      .def_property_readonly("values",
                             [](const policy::CacheValues& self) { return array_of(self.values()); })
      .def(
          "victim",
          [](const policy::CacheValues& self, const py::object& resident, const py::object& pinned) {
            BoolArray keep_resident, keep_pinned;
            return self.victim(flags_of(resident, "resident", keep_resident),
                               flags_of(pinned, "pinned", keep_pinned));
          },
          py::arg("resident"), py::arg("pinned"));
  m.attr("TUNED_ALPHA") = policy::kTunedAlpha;
  m.attr("CACHE_POLICIES") = py::tuple(py::cast(policy::cache_policy_names()));
}

// A forecast as Python gives it: a tuple of arrays, in the order of policy::Forecast.
using ForecastTuple = std::tuple<int32_t, double, py::object, FloatArray64, py::object, FloatArray64,
                                 std::vector<int32_t>, std::vector<double>>;

std::vector<std::tuple<int32_t, int32_t, int32_t, double>> prefetch_of(
    const std::vector<ForecastTuple>& given, const CostModel& cost, double shared_gpu_us,
    const std::string& method, double pcie_free_us, double chunk_us, bool impact) {
  std::vector<IntArray> loads(given.size());
  std::vector<BoolArray> resident(given.size());
  std::vector<policy::Forecast> forecasts;
  for (size_t i = 0; i < given.size(); ++i) {
    const auto& [distance, start_us, load, chance, is_resident, left, victims, victim_chance] = given[i];
    require_1d(chance, "chance");
    require_1d(left, "left");
    forecasts.push_back({distance,
                         start_us,
                         loads_of(load, loads[i]),
                         {chance.data(), static_cast<size_t>(chance.size())},
                         flags_of(is_resident, "resident", resident[i]),
                         {left.data(), static_cast<size_t>(left.size())},
                         victims,
                         victim_chance});
  }
  const policy::PrefetchRequest request{forecasts,    cost,     shared_gpu_us, policy::split_method(method),
                                        pcie_free_us, chunk_us, impact};
  policy::PrefetchScratch scratch;
  std::vector<policy::Prefetch> chosen;
  policy::prefetch(request, scratch, chosen);
  std::vector<std::tuple<int32_t, int32_t, int32_t, double>> out;
  for (const policy::Prefetch& p : chosen) out.emplace_back(p.distance, p.expert, p.victim, p.gain_us);
  return out;
}

void bind_prefetch(py::module_& m) {
  py::class_<policy::PrefetchConfidence>(m, "PrefetchConfidence")
      .def(py::init<int32_t>(), py::arg("ranks"))
      .def("observe", &policy::PrefetchConfidence::observe, py::arg("distance"), py::arg("rank"),
           py::arg("used"))
      .def("value", &policy::PrefetchConfidence::value, py::arg("distance"), py::arg("rank"));
  m.def("prefetch", &prefetch_of, py::arg("forecasts"), py::arg("cost"), py::arg("shared_gpu_us") = 0.0,
        py::arg("method") = "balanced", py::arg("pcie_free_us") = 0.0, py::arg("chunk_us") = 0.0,
        py::arg("impact") = true);
  m.attr("MAX_DISTANCE") = policy::kMaxDistance;
}

}  // namespace

void bind_policy(py::module_& m) {
  py::module_ sub = m.def_submodule("policy", "Pure policies: cost model, split, cache values, prefetch.");
  bind_cost_model(sub);
  bind_split(sub);
  bind_cache(sub);
  bind_prefetch(sub);
}

}  // namespace moerun
