// Errors of the core. Each says what happened, why, and how to fix it; python/bindings turns them into
// exceptions.
#pragma once
#include <stdexcept>
#include <string>

namespace moerun {

// The caller passed something that does not fit (Python: ValueError).
struct InvalidArgument : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// The engine cannot be used in this state: closed, or inherited through fork (Python: RuntimeError).
struct InvalidState : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A checkpoint file is missing, too short or unreadable (Python: moerun.CheckpointError).
struct FileError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A file that the user named cannot be written (Python: OSError).
struct OutputError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// There is no GPU to use: no driver, too old a driver, no device (Python: moerun.GpuError).
struct GpuUnavailable : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A call to the CUDA driver failed (Python: moerun.GpuError).
struct GpuError : std::runtime_error {
  GpuError(int code, const std::string& text) : std::runtime_error(text), code(code) {}
  int code;  // the driver's CUresult
};

// Device or pinned memory does not suffice (Python: moerun.GpuOutOfMemoryError).
struct GpuOutOfMemory : GpuError {
  using GpuError::GpuError;
};

}  // namespace moerun
