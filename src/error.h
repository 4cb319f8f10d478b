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

}  // namespace moerun
