// Kernels for the tests of the driver layer itself.
#pragma once
#include "tests/fakecuda/emulator.h"

namespace fakecuda {

// sum[i] = a[i] + b[i], i < n: (float* sum, const float* a, const float* b, int n)
void emulate_add(const Launch& launch);

}  // namespace fakecuda
