// moerun._core.CacheTable: the cache's bookkeeping, for property tests and for experiments with policies.
#include "src/cache_table/cache_table.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "python/bindings/bindings.h"

namespace py = pybind11;

namespace moerun {

void bind_cache_table(py::module_& m) {
  py::class_<CacheTable>(m, "CacheTable")
      .def(py::init(
               [](int32_t slots, const std::vector<int32_t>& experts) { return CacheTable(slots, experts); }),
           py::arg("slots"), py::arg("experts"))
      .def("reserve", &CacheTable::reserve, py::arg("layer"), py::arg("expert"))
      .def("loaded", &CacheTable::loaded, py::arg("slot"))
      .def("abandon", &CacheTable::abandon, py::arg("slot"))
      .def("pin", &CacheTable::pin, py::arg("slot"))
      .def("unpin", &CacheTable::unpin, py::arg("slot"))
      .def("evict", &CacheTable::evict, py::arg("slot"))
      .def("freed", &CacheTable::freed, py::arg("slot"))
      .def(
          "victim",
          [](const CacheTable& t, const std::vector<policy::CacheValues>& values) {
            return t.victim(values);
          },
          py::arg("values"))
      .def(
          "state", [](const CacheTable& t, int32_t slot) { return name_of(t.state(slot)); }, py::arg("slot"))
      .def(
          "owner",
          [](const CacheTable& t, int32_t slot) {
            const SlotOwner owner = t.owner(slot);
            return std::pair(owner.layer, owner.expert);
          },
          py::arg("slot"))
      .def("pins", &CacheTable::pins, py::arg("slot"))
      .def("slot_of", &CacheTable::slot_of, py::arg("layer"), py::arg("expert"))
      .def(
          "resident",
          [](const CacheTable& t, int32_t layer) {
            const auto resident = t.resident(layer);
            return std::vector<bool>(resident.begin(), resident.end());
          },
          py::arg("layer"))
      .def_property_readonly("slots", &CacheTable::slots)
      .def_property_readonly("counts", [](const CacheTable& t) {
        py::dict counts;
        for (int s = 0; s < kSlotStates; ++s)
          counts[name_of(static_cast<SlotState>(s))] = t.count(static_cast<SlotState>(s));
        return counts;
      });
}

}  // namespace moerun
