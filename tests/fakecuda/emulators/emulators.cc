// The list of all emulated kernels.
#include "tests/fakecuda/emulators/moe.h"
#include "tests/fakecuda/emulators/simple.h"

namespace fakecuda {

const Emulator* find_emulator(const std::string& function) {
  constexpr uint32_t kPointer = 8, kInt = 4;
  // Parameters as python/moerun/kernels/contract.py has them.
  static const Emulator kEmulators[] = {
      {"fake_add", {kPointer, kPointer, kPointer, kInt}, emulate_add},
      {"moerun_gate_up", {kPointer, kPointer, kPointer, kPointer, kPointer}, emulate_gate_up},
      {"moerun_activate", {kPointer, kPointer, kPointer, kPointer}, emulate_activate},
      {"moerun_down", {kPointer, kPointer, kPointer, kPointer, kPointer}, emulate_down},
      {"moerun_combine", {kPointer, kPointer, kPointer, kPointer, kInt}, emulate_combine},
  };
  for (const Emulator& emulator : kEmulators)
    if (emulator.function == function) return &emulator;
  return nullptr;
}

}  // namespace fakecuda
