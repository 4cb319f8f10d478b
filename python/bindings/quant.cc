// Weight formats and the layout of blobs, for python/moerun/quant.
#include <pybind11/pybind11.h>

#include "python/bindings/bindings.h"
#include "src/expert_store/blob_layout.h"

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

}  // namespace

void bind_quant(py::module_& m) {
  py::enum_<WeightFormat> formats(m, "WeightFormat");
  for (int f = 0; f < kWeightFormats; ++f) formats.value(kFormatInfo[f].name, static_cast<WeightFormat>(f));
  bind_matrix(m);
  py::class_<BlobLayout>(m, "BlobLayout",
                         "Where everything lies in an expert's blob (src/expert_store/blob_layout.h).")
      .def(py::init(&blob_layout), py::arg("format"), py::arg("hidden"), py::arg("inter"), py::arg("bias"))
      .def_readonly("format", &BlobLayout::format)
      .def_readonly("gate_up", &BlobLayout::gate_up)
      .def_readonly("down", &BlobLayout::down)
      .def_readonly("gate_up_bias", &BlobLayout::gate_up_bias)
      .def_readonly("down_bias", &BlobLayout::down_bias)
      .def_readonly("bytes", &BlobLayout::bytes);
  m.def("weight_bytes", &weight_bytes, py::arg("format"), py::arg("hidden"), py::arg("inter"),
        "Bytes of one expert's codes, scales and zeros, without padding.");
}

}  // namespace moerun
