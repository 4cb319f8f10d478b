// f(0), f(1), ... f(N - 1) with constants for arguments, so that arrays indexed by them live in registers
// whatever the compiler thinks of the size of a loop.
#pragma once
#include <utility>

namespace moerun::cpu {
namespace {

template <int N, class F>
__attribute__((always_inline)) inline void unrolled(F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (f(std::integral_constant<int, I>{}), ...);
  }(std::make_integer_sequence<int, N>{});
}

}  // namespace
}  // namespace moerun::cpu
