// One function per subsystem; module.cc calls them all. Bindings check, release the GIL, call; they hold no
// logic.
#pragma once
#include <pybind11/pybind11.h>

namespace moerun {

void bind_cache_table(pybind11::module_& m);
void bind_doctor(pybind11::module_& m);
void bind_engine(pybind11::module_& m);
void bind_gpu(pybind11::module_& m);
void bind_expert_store(pybind11::module_& m);
void bind_policy(pybind11::module_& m);
void bind_quant(pybind11::module_& m);

}  // namespace moerun
