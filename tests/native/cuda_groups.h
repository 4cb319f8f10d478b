// The groups of tests of the driver layer, one file each or two; cuda_test.cc runs them by name.
#pragma once
#include "cuda/driver_types.h"

namespace moerun::cuda {

void owners();
void order();
void a_missing_wait_is_found();
void overwriting_too_early_is_found();
void many_threads();
void refusals();
void each_call_fails(Result code);

}  // namespace moerun::cuda
