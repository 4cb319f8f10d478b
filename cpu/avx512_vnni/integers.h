// Vectors of integers with AVX-512-VNNI: what cpu/kernels/int8_dot_inl.h needs beside a Simd.
#pragma once
#include <immintrin.h>

#include "cpu/avx512/simd.h"

namespace moerun::cpu {
namespace {

using Integers = __v16si;  // not __m512i: GCC 12 keeps arrays of those in memory

// sum[i] += the sum of four products of bytes
inline Integers add_products(Integers sum, Integers unsigned_bytes, Integers signed_bytes) {
  return (Integers)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)unsigned_bytes, (__m512i)signed_bytes);
}

}  // namespace
}  // namespace moerun::cpu
