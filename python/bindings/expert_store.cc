// Python face of the expert store: _core.MappedFile, used by moerun/checkpoint, and use_huge_pages.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "python/bindings/bindings.h"
#include "src/expert_store/huge_pages.h"
#include "src/expert_store/mapped_file.h"

namespace py = pybind11;

namespace moerun {

void bind_expert_store(py::module_& m) {
  m.def(
      "use_huge_pages",
      [](uintptr_t address, int64_t bytes) {
        return use_huge_pages(reinterpret_cast<const void*>(address), bytes);
      },
      py::arg("address"), py::arg("bytes"), py::call_guard<py::gil_scoped_release>(),
      "Collapses memory into huge pages where the kernel can; returns the bytes that it did.");
  py::class_<MappedFile>(
      m, "MappedFile", py::buffer_protocol(),
      "One file, mapped read-only; a read-only buffer of its bytes. CheckpointError if it cannot be "
      "mapped or is not expected_bytes long.")
      .def(py::init<std::string, uint64_t>(), py::arg("path"), py::arg("expected_bytes"))
      .def_property_readonly(
          "address", [](const MappedFile& file) { return reinterpret_cast<uintptr_t>(file.data()); },
          "Address of the first byte. Valid for as long as this object lives.")
      .def_property_readonly("size", &MappedFile::size, "Length in bytes.")
      .def_property_readonly("path", &MappedFile::path)
      .def("prefetch", &MappedFile::prefetch, py::arg("offset"), py::arg("bytes"),
           py::call_guard<py::gil_scoped_release>(),
           "Asks the kernel to start reading these bytes into memory; does not wait.")
      .def_buffer([](const MappedFile& file) {
        return py::buffer_info(reinterpret_cast<const uint8_t*>(file.data()),
                               static_cast<py::ssize_t>(file.size()),
                               /*readonly=*/true);
      });
}

}  // namespace moerun
