// The kernels of python/moerun/kernels/contract.py in plain loops: parameters, lists and memory are described
// there. They read the very blobs that the real kernels read, and touch exactly what those touch.
#pragma once
#include "tests/fakecuda/emulator.h"

namespace fakecuda {

void emulate_gate_up(const Launch& launch);
void emulate_activate(const Launch& launch);
void emulate_down(const Launch& launch);
void emulate_combine(const Launch& launch);

}  // namespace fakecuda
