#include "cuda/driver_table.h"

#include <dlfcn.h>

#include <cstdlib>

#include "cuda/driver_error.h"
#include "src/error.h"

namespace moerun::cuda {
namespace {

// Also keeps the library loaded: its own threads may outlive the contexts.
void* open_library(const std::string& path) {
  if (void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE)) return library;
  throw GpuUnavailable(std::string("no CUDA driver: ") + dlerror() +
                       "; install NVIDIA's driver, or point MOERUN_LIBCUDA at its libcuda.so.1");
}

template <class Signature>
void find(void* library, const char* symbol, DriverFunction<Signature>& function) {
  function.name = symbol;
  function.address = reinterpret_cast<decltype(function.address)>(dlsym(library, symbol));
}

template <class Signature>
void require(const std::string& path, const DriverFunction<Signature>& function) {
  if (function) return;
  throw GpuUnavailable(path + " lacks " + function.name +
                       "; it is not a CUDA driver, or older than CUDA 12: update the NVIDIA driver");
}

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

std::string driver_library() {
  const char* path = std::getenv("MOERUN_LIBCUDA");
  return path && *path ? path : "libcuda.so.1";
}

Driver open_driver() {
  const std::shared_ptr<DriverTable> table(new DriverTable);
  table->library_ = driver_library();
  void* const library = open_library(table->library_);
#define MOERUN_FIND(member, symbol, ...) find(library, #symbol, table->member);
  MOERUN_CUDA_FUNCTIONS(MOERUN_FIND)
  MOERUN_CUDA_OPTIONAL_FUNCTIONS(MOERUN_FIND)
#undef MOERUN_FIND

  // The version comes first: an old driver should be told from a library that is no driver at all.
  require(table->library_, table->DriverGetVersion);
  require(table->library_, table->GetErrorName);
  table->call(table->DriverGetVersion, "asking for the driver's version", &table->version_);
  if (table->version_ < kOldestDriverVersion)
    throw GpuUnavailable("the CUDA driver is too old: it serves CUDA " + version_text(table->version_) +
                         ", and moerun's kernels need " + version_text(kOldestDriverVersion) +
                         " or newer; update the NVIDIA driver");
#define MOERUN_REQUIRE(member, symbol, ...) require(table->library_, table->member);
  MOERUN_CUDA_FUNCTIONS(MOERUN_REQUIRE)
#undef MOERUN_REQUIRE

  table->call(table->Init, "starting the CUDA driver", 0U);
  return table;
}

std::string DriverTable::error_name(Result result) const {
  const char* name = nullptr;
  if (GetErrorName(result, &name) != kSuccess || name == nullptr) name = "an unknown error";
  return std::string(name) + " (" + std::to_string(result) + ")";
}

void DriverTable::fail(Result result, const char* function, const std::string& doing) const {
  throw_driver_error(result,
                     doing + ": " + function + " returned " + error_name(result) + remedy_for(result));
}

}  // namespace moerun::cuda
