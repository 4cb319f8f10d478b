// Weight formats and the layout of blobs, for python/moerun/quant.
#include <pybind11/pybind11.h>

#include "cpu/cpu_info.h"
#include "cpu/dispatch.h"
#include "cpu/team.h"
#include "cpu/work_ranges.h"
#include "python/bindings/bindings.h"
#include "python/bindings/expert_views.h"
#include "src/error.h"
#include "src/expert_store/checksum.h"
#include "src/expert_store/quantise.h"

namespace py = pybind11;

namespace moerun {
namespace {

void bind_matrix(py::module_& m) {
  py::class_<BlobMatrix>(m, "BlobMatrix",
                         "One weight section of a blob; offsets are bytes from the blob's start.")
      .def_readonly("rows", &BlobMatrix::rows)
      .def_readonly("columns", &BlobMatrix::columns)
      .def_readonly("row_bytes", &BlobMatrix::row_bytes)
      .def_readonly("row_stride", &BlobMatrix::row_stride)
      .def_readonly("scale_stride", &BlobMatrix::scale_stride)
      .def_readonly("scale_rows", &BlobMatrix::scale_rows)
      .def_readonly("codes", &BlobMatrix::codes)
      .def_readonly("scales", &BlobMatrix::scales)
      .def_readonly("zeros", &BlobMatrix::zeros);
}

std::vector<std::byte*> blob_addresses(const Addresses& blobs, size_t experts) {
  if (static_cast<size_t>(blobs.size()) != experts) throw InvalidArgument("one blob per expert is needed");
  std::vector<std::byte*> addresses;
  for (py::ssize_t e = 0; e < blobs.size(); ++e)
    addresses.push_back(reinterpret_cast<std::byte*>(blobs.at(e)));
  return addresses;
}

py::array_t<uint64_t> checksums_at(const Addresses& addresses, int64_t bytes, int threads) {
  py::array_t<uint64_t> result(addresses.size());
  uint64_t* to = result.mutable_data();
  const uint64_t* from = addresses.data();
  const int64_t count = addresses.size();
  const py::gil_scoped_release release;
  checksums(from, count, bytes, to, cpu::Team(threads ? threads : cpu::cpu_info().usable_cores));
  return result;
}

void quantise(const BlobLayout& layout, DType from, const Addresses& gate, const Addresses& up,
              const Addresses& down, const Strides& gate_up_strides, const Strides& down_strides,
              const Biases& gate_bias, const Biases& up_bias, const Biases& down_bias, const Addresses& blobs,
              int threads, const std::string& isa) {
  const std::vector<ExpertView> experts =
      expert_views(layout.gate_up.columns, layout.down.columns, gate, up, down, gate_up_strides, down_strides,
                   gate_bias, up_bias, down_bias);
  if (layout.bias && !(gate_bias && up_bias && down_bias))
    throw InvalidArgument("the layout has biases, none were given");
  const std::vector<std::byte*> to = blob_addresses(blobs, experts.size());
  const cpu::KernelTable& kernels = cpu::choose_kernels(isa);
  const py::gil_scoped_release release;
  quantise_experts(experts.data(), from, layout, to.data(), blobs.size(), kernels,
                   cpu::Team(threads ? threads : cpu::cpu_info().usable_cores));
}

}  // namespace

void bind_quant(py::module_& m) {
  py::enum_<DType>(m, "DType").value("fp32", DType::f32).value("fp16", DType::f16).value("bf16", DType::bf16);
  py::enum_<WeightFormat> formats(m, "WeightFormat");
  for (int f = 0; f < kWeightFormats; ++f) formats.value(kFormatInfo[f].name, static_cast<WeightFormat>(f));
  bind_matrix(m);
  py::class_<BlobLayout>(m, "BlobLayout",
                         "Where everything lies in an expert's blob (src/expert_store/blob_layout.h).")
      .def(py::init(&blob_layout), py::arg("format"), py::arg("hidden"), py::arg("inter"), py::arg("bias"))
      .def_readonly("format", &BlobLayout::format)
      .def_readonly("bias", &BlobLayout::bias)
      .def_readonly("gate_up", &BlobLayout::gate_up)
      .def_readonly("down", &BlobLayout::down)
      .def_readonly("gate_up_bias", &BlobLayout::gate_up_bias)
      .def_readonly("down_bias", &BlobLayout::down_bias)
      .def_readonly("bytes", &BlobLayout::bytes);
  m.def("quantise", quantise, py::arg("layout"), py::arg("dtype"), py::arg("gate"), py::arg("up"),
        py::arg("down"), py::arg("gate_up_strides"), py::arg("down_strides"), py::arg("gate_bias"),
        py::arg("up_bias"), py::arg("down_bias"), py::arg("blobs"), py::arg("threads") = 0,
        py::arg("isa") = "",
        "Writes experts into the blobs at these addresses. threads 0: all usable cores.");
  m.def("checksums", checksums_at, py::arg("blobs"), py::arg("bytes"), py::arg("threads") = 0,
        "Of the memory at each address, uint64 [n]. threads 0: all usable cores.");
  m.def("weight_bytes", &weight_bytes, py::arg("format"), py::arg("hidden"), py::arg("inter"),
        "Bytes of one expert's codes, scales and zeros, without padding.");
}

}  // namespace moerun
