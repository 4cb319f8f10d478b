// What the machine has and what it can do, as plain dicts: for `moerun doctor` and the benches.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/cpu_info.h"
#include "cpu/dispatch.h"
#include "cpu/measure.h"
#include "cpu/team.h"
#include "cpu/topology.h"
#include "cuda/driver_probe.h"
#include "python/bindings/bindings.h"

namespace py = pybind11;

namespace moerun {
namespace {

py::dict node_dict(const cpu::Node& node) {
  py::dict d;
  d["id"] = node.id;
  d["cpus"] = node.cpus;
  return d;
}

py::dict cpu_info_dict() {
  const cpu::CpuInfo& info = cpu::cpu_info();
  py::dict d;
  d["model"] = info.model;
  d["usable_cores"] = info.usable_cores;
  py::list nodes;
  for (const cpu::Node& node : cpu::topology().nodes) nodes.append(node_dict(node));
  d["nodes"] = nodes;
  d["l1d_bytes"] = info.l1d_bytes;
  d["l2_bytes"] = info.l2_bytes;
  d["l3_bytes"] = info.l3_bytes;
  d["instruction_sets"] = info.instruction_sets();
  return d;
}

py::list read_nodes(const std::string& folder, const std::vector<int>& usable) {
  py::list nodes;
  for (const cpu::Node& node : cpu::read_topology(folder, usable).nodes) nodes.append(node_dict(node));
  return nodes;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const cpu::KernelTable* row : cpu::available_kernels()) names.emplace_back(row->isa);
  return names;
}

py::dict figure_dict(const cpu::Figure& figure) {
  py::dict d;
  d["median"] = figure.median;
  d["best"] = figure.best;
  d["spread_percent"] = 100 * figure.spread;
  d["repeats"] = figure.repeats;
  return d;
}

py::dict measure_limits(int threads, int64_t buffer_bytes, const std::string& isa, double seconds,
                        int repeats) {
  cpu::Limits limits;
  {
    py::gil_scoped_release release;
    limits =
        cpu::measure_limits(cpu::choose_kernels(isa), cpu::Team(threads), {buffer_bytes, seconds, repeats});
  }
  py::dict dot, d;
  for (const cpu::DotPeak& peak : limits.dot) dot[cpu::name_of(peak.type)] = figure_dict(peak.gflop_per_s);
  d["threads"] = limits.threads;
  d["buffer_bytes"] = limits.buffer_bytes;
  d["read_gb_per_s"] = figure_dict(limits.read_gb_per_s);
  d["dot_gflop_per_s"] = dot;
  return d;
}

py::dict probe_gpu() {
  cuda::GpuProbe probe;
  {
    py::gil_scoped_release release;  // a driver's first initialisation takes a second or more
    probe = cuda::probe_gpu();
  }
  py::list devices;
  for (const cuda::DeviceInfo& gpu : probe.devices) {
    py::dict d;
    d["name"] = gpu.name;
    d["compute_capability"] = std::to_string(gpu.compute_major) + "." + std::to_string(gpu.compute_minor);
    d["memory_bytes"] = gpu.memory_bytes;
    devices.append(d);
  }
  py::dict d;
  d["library"] = probe.library;
  d["driver_version"] = probe.driver_version;
  d["devices"] = devices;
  d["reason"] = probe.reason;
  return d;
}

}  // namespace

void bind_doctor(py::module_& m) {
  m.def("cpu_info", &cpu_info_dict,
        "Processor, usable cores, memory nodes, caches (bytes) and instruction sets.");
  m.def("read_nodes", &read_nodes, py::arg("folder"), py::arg("usable"),
        "Memory nodes with their usable processors, from a folder laid out as /sys/devices/system/node.");
  m.def("available_isas", &available_isas, "Rows of the kernel table that this machine can run, best first.");
  m.def(
      "choose_isa", [](const std::string& isa) { return std::string(cpu::choose_kernels(isa).isa); },
      py::arg("isa") = "",
      "The row that an engine would use: `isa`, or else MOERUN_ISA, or else the best. Raises ValueError.");
  m.def("measure_limits", &measure_limits, py::arg("threads"), py::arg("buffer_bytes"), py::arg("isa") = "",
        py::arg("seconds") = 1.0, py::arg("repeats") = 9,
        "Read bandwidth (GB/s) and dot-product peaks (GFLOP/s by what is multiplied), each measured for "
        "`seconds`.");
  py::enum_<cpu::DotType>(m, "DotType", "What the multiply-adds of a kernel multiply.")
      .value("fp32", cpu::DotType::f32)
      .value("bf16", cpu::DotType::bf16)
      .value("int8", cpu::DotType::int8);
  py::class_<cpu::LimitMeter>(m, "LimitMeter", "Measures the machine's limits one slice of time a call.")
      .def(py::init([](int threads, int64_t buffer_bytes, const std::string& isa) {
             return std::make_unique<cpu::LimitMeter>(cpu::choose_kernels(isa), cpu::Team(threads),
                                                      buffer_bytes);
           }),
           py::arg("threads"), py::arg("buffer_bytes"), py::arg("isa") = "")
      .def_property_readonly("dot_types", &cpu::LimitMeter::dot_types)
      .def("dot_type", &cpu::LimitMeter::dot_type, py::arg("format"),
           "What many tokens of bf16 with weights of a format are multiplied as.")
      .def("read", &cpu::LimitMeter::read, py::arg("seconds"), py::call_guard<py::gil_scoped_release>(),
           "GB/s of reading the buffer in order.")
      .def("dot", &cpu::LimitMeter::dot, py::arg("type"), py::arg("seconds"),
           py::call_guard<py::gil_scoped_release>(), "GFLOP/s of multiply-adds in registers.");
  m.def("probe_gpu", &probe_gpu, "CUDA devices, or the reason why there are none.");
  m.def("openmp_runtime", &cpu::openmp_runtime, "Path of the OpenMP runtime in use, or why there is none.");
  m.def("set_openmp_hint", &cpu::set_openmp_hint, py::arg("path"),
        "Folder to look for an OpenMP runtime in, if none is loaded yet.");
}

}  // namespace moerun
