#include "cpu/team.h"
#include "python/bindings/bindings.h"

namespace moerun {
void bind_doctor(pybind11::module_& m) { m.def("set_openmp_hint", &cpu::set_openmp_hint); }
}  // namespace moerun
