// What the codes of the small number formats mean, one number at a time, for any processor. The reference
// kernels and the quantiser use them; fast kernels do the same on vectors.
#pragma once
#include <cmath>
#include <cstdint>

namespace moerun::cpu {
namespace {

inline float from_bf16(uint16_t h) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(h) << 16);
}

inline float from_f16(uint16_t h) {
  const uint32_t exponent = (h >> 10) & 31, fraction = h & 1023, sign = (h & 0x8000u) << 16;
  const uint32_t rebiased = exponent == 31 ? 255 : exponent + 127 - 15;
  const float magnitude = exponent == 0 ? static_cast<float>(fraction) * 0x1p-24f
                                        : __builtin_bit_cast(float, rebiased << 23 | fraction << 13);
  return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, magnitude) | sign);
}

inline uint16_t to_bf16(float v) {
  const uint32_t b = __builtin_bit_cast(uint32_t, v);
  if (std::isnan(v)) return static_cast<uint16_t>(b >> 16 | 0x40);
  return static_cast<uint16_t>((b + 0x7fff + ((b >> 16) & 1)) >> 16);
}

inline uint16_t to_f16(float v) {
  const uint16_t sign = std::signbit(v) ? 0x8000 : 0;
  const float magnitude = std::fabs(v);
  const uint32_t b = __builtin_bit_cast(uint32_t, magnitude);
  if (std::isnan(v)) return sign | 0x7e00;
  if (magnitude >= 65520.0f) return sign | 0x7c00;  // halfway between the largest and the next
  // Subnormal: multiples of 2^-24, which is the last bit of 1/2.
  if (magnitude < 0x1p-14f) {
    const float aligned = magnitude + 0.5f;
    return sign | static_cast<uint16_t>(__builtin_bit_cast(uint32_t, aligned));
  }
  // To even; a carry moves into the exponent by itself.
  return sign | static_cast<uint16_t>(((b + 0xfff + ((b >> 13) & 1)) >> 13) - ((127 - 15) << 10));
}

// e4m3 (OCP's "fn"): no infinities, 0x7f and 0xff are NaN, largest 448, smallest 2^-9.
inline float from_e4m3(uint8_t code) {
  const uint32_t exponent = (code >> 3) & 15, fraction = code & 7;
  const float magnitude = (code & 0x7f) == 0x7f ? NAN
                          : exponent == 0
                              ? static_cast<float>(fraction) * 0x1p-9f
                              : __builtin_bit_cast(float, (exponent + 127 - 7) << 23 | fraction << 20);
  return code & 0x80 ? -magnitude : magnitude;
}

// e2m1: sign, two bits of exponent, one of fraction.
inline float from_e2m1(uint8_t code) {
  constexpr float kMagnitude[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  return code & 8 ? -kMagnitude[code & 7] : kMagnitude[code & 7];
}

// e8m0: a power of two; 255 is NaN.
inline float from_e8m0(uint8_t code) {
  return code == 255 ? NAN : std::ldexp(1.0f, code - 127);
}

}  // namespace
}  // namespace moerun::cpu
