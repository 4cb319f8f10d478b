#include "tests/fakecuda/emulators/simple.h"

namespace fakecuda {

void emulate_add(const Launch& launch) {
  const int n = launch.parameter<int>(3);
  const auto* const a = launch.read<float>(launch.pointer(1), n);
  const auto* const b = launch.read<float>(launch.pointer(2), n);
  auto* const sum = launch.write<float>(launch.pointer(0), n);
  for (int i = 0; i < n; ++i) sum[i] = a[i] + b[i];
}

}  // namespace fakecuda
