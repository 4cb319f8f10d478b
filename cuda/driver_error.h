// What a return code of the driver means for moerun: which exception, whether the process can go on using
// the GPU, and what a person can do about it.
#pragma once
#include <string>

#include "cuda/driver_types.h"

namespace moerun::cuda {

// Whether every later call in this context returns the same error, so that only a new process helps
// (cuda.h: "This leaves the process in an inconsistent state"). An asynchronous call reports it late: the
// culprit is an earlier kernel or copy.
bool is_sticky(Result result);

// How to fix it, with the leading "; ", or empty where the driver's name says all there is.
std::string remedy_for(Result result);

// Throws GpuOutOfMemory, GpuUnavailable or GpuError with this text.
[[noreturn]] void throw_driver_error(Result result, const std::string& text);

}  // namespace moerun::cuda
