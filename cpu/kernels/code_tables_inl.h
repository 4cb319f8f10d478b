// Tables of what codes mean, as fp32, for the Codes of an instruction set (cpu/<isa>/codes.h).
#pragma once
namespace moerun::cpu {
namespace {

template <int N>
struct FloatTable {
  alignas(64) float value[N];
};

// e2m1 by code: the sign is the highest of four bits
constexpr FloatTable<16> kE2m1 = {
    {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f}};

// code - 8, by code
constexpr FloatTable<16> kMinusEight = {{-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7}};

// e8m0, a power of two: 2^(code - 127), of which code 0 is subnormal in fp32; 255 is NaN
constexpr FloatTable<256> kE8m0 = [] {
  FloatTable<256> t{};
  for (unsigned code = 0; code < 255; ++code)
    t.value[code] = __builtin_bit_cast(float, code ? code << 23 : 1u << 22);
  t.value[255] = __builtin_nanf("");
  return t;
}();

}  // namespace
}  // namespace moerun::cpu
