// The extension module moerun._core, and how the core's errors become Python's.
#include "python/bindings/bindings.h"
#include "src/error.h"

namespace py = pybind11;

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ core of moerun. Use the moerun package; names here may change.";
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const moerun::InvalidArgument& e) {
      PyErr_SetString(PyExc_ValueError, e.what());
    } catch (const moerun::FileError& e) {
      PyErr_SetString(py::module_::import("moerun.errors").attr("CheckpointError").ptr(), e.what());
    } catch (const moerun::OutputError& e) {
      PyErr_SetString(PyExc_OSError, e.what());
    } catch (const moerun::InvalidState& e) {
      PyErr_SetString(PyExc_RuntimeError, e.what());
    } catch (const moerun::GpuOutOfMemory& e) {
      PyErr_SetString(py::module_::import("moerun.errors").attr("GpuOutOfMemoryError").ptr(), e.what());
    } catch (const moerun::GpuError& e) {
      PyErr_SetString(py::module_::import("moerun.errors").attr("GpuError").ptr(), e.what());
    } catch (const moerun::GpuUnavailable& e) {
      PyErr_SetString(py::module_::import("moerun.errors").attr("GpuError").ptr(), e.what());
    }
  });
  moerun::bind_quant(m);   // first: others take a WeightFormat
  moerun::bind_policy(m);  // before the engine, which takes a cost model
  moerun::bind_gpu(m);
  moerun::bind_engine(m);
  moerun::bind_expert_store(m);
  moerun::bind_doctor(m);
  moerun::bind_cache_table(m);  // after the policies: takes their values
}
