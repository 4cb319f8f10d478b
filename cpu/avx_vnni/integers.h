// Vectors of integers with AVX-VNNI (the VEX encoding, on processors without AVX-512): what
// cpu/kernels/int8_dot_inl.h needs beside a Simd.
#pragma once
#include <immintrin.h>

#include "cpu/avx2/simd.h"

namespace moerun::cpu {
namespace {

using Integers = __v8si;  // not __m256i: GCC 12 keeps arrays of those in memory

// sum[i] += the sum of four products of bytes
inline Integers add_products(Integers sum, Integers unsigned_bytes, Integers signed_bytes) {
  return (Integers)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)unsigned_bytes, (__m256i)signed_bytes);
}

}  // namespace
}  // namespace moerun::cpu
