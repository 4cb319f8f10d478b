// AMX's tiles and the kernel over them, against plain sums: emulated anywhere, and in hardware where there is
// AMX, where both must agree bit for bit. Operands lie in exact allocations, so that AddressSanitizer sees a
// byte too many. Prints which tiles were tested and what is wrong; returns 1 if anything is.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "cpu/amx/emulated_tiles.h"
#include "cpu/amx/tile_kernel_inl.h"
#include "cpu/amx/tiles.h"
#include "cpu/cpu_info.h"
#include "cpu/kernels/number_formats_inl.h"

namespace moerun::cpu {
namespace {

int failures = 0;

void expect(bool good, const char* what) {
  if (!good) std::printf("wrong: %s\n", what);
  failures += !good;
}

using Words = std::vector<uint32_t>;  // [rows][16]

uint32_t pair(float even, float odd) {
  return to_bf16(even) | static_cast<uint32_t>(to_bf16(odd)) << 16;
}
float half(uint32_t word, int odd) {
  return from_bf16(static_cast<uint16_t>(odd ? word >> 16 : word));
}

enum class Kind { bf16, int8 };

// C += A B for tiles of A and C with as many rows as `a` has.
template <class Tiles>
Words multiply(Kind kind, const Words& a, const Words& b, const Words& c) {
  const int rows = static_cast<int>(a.size() / 16);
  const typename Tiles::Session session(rows);
  typename Tiles::template Tile<0> tc(session);
  typename Tiles::template Tile<4> ta(session);
  typename Tiles::template Tile<6> tb(session);
  tc.load(c.data(), 64), ta.load(a.data(), 64), tb.load(b.data(), 64);
  if (kind == Kind::bf16)
    tc.add_bf16(ta, tb);
  else
    tc.add_int8(ta, tb);
  Words out(a.size());
  tc.store(out.data(), 64);
  return out;
}

Words words_of(int rows, auto&& word) {
  Words w(rows * 16);
  for (uint32_t& v : w) v = word();
  return w;
}

template <class Tiles>
void test_bf16_sums(std::mt19937& random) {
  std::normal_distribution<float> normal;
  for (int rows : {1, 7, 16}) {
    const auto word = [&] { return pair(normal(random), normal(random)); };
    const Words a = words_of(rows, word), b = words_of(16, word);
    const Words c = words_of(rows, [&] { return __builtin_bit_cast(uint32_t, normal(random)); });
    const Words out = multiply<Tiles>(Kind::bf16, a, b, c);
    for (int m = 0; m < rows; ++m)
      for (int n = 0; n < 16; ++n) {
        double sum = __builtin_bit_cast(float, c[m * 16 + n]), magnitude = std::fabs(sum);
        for (int k = 0; k < 16; ++k)
          for (int odd = 0; odd < 2; ++odd) {
            const double product = double{half(a[m * 16 + k], odd)} * half(b[k * 16 + n], odd);
            sum += product, magnitude += std::fabs(product);
          }
        // each of 18 roundings on the longest way to a sum costs half of 2^-23
        const double got = __builtin_bit_cast(float, out[m * 16 + n]);
        expect(std::fabs(got - sum) <= 18 * 0x1p-24 * magnitude, "a bf16 sum");
      }
  }
}

// What the manual says beyond "a sum of products": the order of the additions, and no subnormal numbers.
template <class Tiles>
void test_bf16_rounding() {
  const auto only = [](uint32_t first, uint32_t second) {  // words 0 and 1 of every row or column
    Words a(256), b(256);
    for (int i = 0; i < 16; ++i) a[i * 16] = first, a[i * 16 + 1] = second;
    for (int i = 0; i < 16; ++i) b[i] = b[16 + i] = pair(1, 1);
    return std::pair(a, b);
  };
  const auto result = [](const std::pair<Words, Words>& ab, float c) {
    const Words out =
        multiply<Tiles>(Kind::bf16, ab.first, ab.second, Words(256, __builtin_bit_cast(uint32_t, c)));
    return __builtin_bit_cast(float, out[255]);
  };
  // Even and odd k are summed apart: neither 2^24 + 1 has a place for its 1, but 1 + 1 has.
  expect(result(only(pair(0x1p24f, 1), pair(0, 1)), 0) == 0x1p24f + 2, "odd k are summed apart");
  expect(result(only(pair(0x1p24f, 0), pair(1, 0)), 0) == 0x1p24f, "even k are summed in fp32");
  expect(result(only(pair(1, 0), pair(1, 0)), 0x1p24f) == 0x1p24f + 2, "C is added last");
  const float tiny = 0x1p-127f;
  expect(result(only(pair(tiny, tiny), pair(tiny, tiny)), 0) == 0, "subnormal factors are zero");
  expect(result(only(0, 0), tiny) == 0, "a subnormal sum is zero");
  const auto products = only(pair(0x1p-70f, 0), 0);
  Words small = products.second;
  for (uint32_t& w : small) w = pair(0x1p-70f, 0x1p-70f);
  expect(result({products.first, small}, 0) == 0, "a subnormal product is zero");
  expect(std::isnan(result(only(pair(INFINITY, 0), pair(-INFINITY, 0)), 0)), "infinities cancel to NaN");
}

template <class Tiles>
void test_int8_sums(std::mt19937& random) {
  for (int rows : {1, 5, 16}) {
    const auto word = [&] { return static_cast<uint32_t>(random()); };
    const Words a = words_of(rows, word), b = words_of(16, word), c = words_of(rows, word);
    const Words out = multiply<Tiles>(Kind::int8, a, b, c);
    for (int m = 0; m < rows; ++m)
      for (int n = 0; n < 16; ++n) {
        int64_t sum = static_cast<int32_t>(c[m * 16 + n]);
        for (int k = 0; k < 16; ++k)
          for (int i = 0; i < 32; i += 8)
            sum += static_cast<int8_t>(a[m * 16 + k] >> i) * static_cast<int8_t>(b[k * 16 + n] >> i);
        expect(out[m * 16 + n] == static_cast<uint32_t>(sum), "an int8 sum, modulo 2^32");
      }
  }
}

struct Rows {
  const char* data = nullptr;
  int64_t stride = 0;
};
struct Panel {
  const char (*data)[64];  // a word of 16 tokens
  int64_t vectors, stride;
};

// Every number of rows, vectors and words around whole tiles.
template <class Tiles>
void test_kernel(std::mt19937& random) {
  std::uniform_int_distribution<int> small(-8, 8);  // sums are exact
  const auto word = [&] {
    return pair(static_cast<float>(small(random)), static_cast<float>(small(random)));
  };
  for (int64_t count : {1, 3, 15, 16, 17, 24, 31, 32, 33, 48})
    for (int64_t vectors : {1, 2, 3, 4})
      for (int64_t words : {1, 15, 16, 17, 40}) {
        const int64_t row_words = (words + 15) / 16 * 16, c_stride = vectors * 16;
        Words rows(count * row_words), tokens(vectors * words * 16);
        for (int64_t n = 0; n < count; ++n)
          for (int64_t k = 0; k < words; ++k) rows[n * row_words + k] = word();
        for (uint32_t& w : tokens) w = word();
        std::vector<float> c(count * c_stride, NAN);
        const Rows given = {reinterpret_cast<const char*>(rows.data()), row_words * 4};
        const Panel panel = {reinterpret_cast<const char (*)[64]>(tokens.data()), vectors, words};
        multiply_group_in_tiles<Tiles>(given, count, panel, words, c.data(), c_stride, words % 2 == 0, given);
        bool good = true;
        for (int64_t n = 0; n < count; ++n)
          for (int64_t t = 0; t < c_stride; ++t) {
            float sum = 0;
            for (int64_t k = 0; k < words; ++k)
              for (int odd = 0; odd < 2; ++odd)
                sum += half(rows[n * row_words + k], odd) *
                       half(tokens[(t / 16 * words + k) * 16 + t % 16], odd);
            good &= c[n * c_stride + t] == sum;
          }
        if (!good)
          std::printf("%d rows, %d vectors, %d words: ", static_cast<int>(count), static_cast<int>(vectors),
                      static_cast<int>(words));
        expect(good, "a group of rows");
      }
}

template <class Tiles>
void test_all() {
  std::mt19937 random(1);
  test_bf16_sums<Tiles>(random);
  test_bf16_rounding<Tiles>();
  test_int8_sums<Tiles>(random);
  test_kernel<Tiles>(random);
}

// On any bits: subnormal, infinite and not a number among them.
void test_twins_agree() {
  std::mt19937 random(2);
  const auto word = [&] { return static_cast<uint32_t>(random()); };
  for (int round = 0; round < 200; ++round) {
    const Words a = words_of(16, word), b = words_of(16, word), c = words_of(16, word);
    expect(multiply<HardwareTiles>(Kind::int8, a, b, c) == multiply<EmulatedTiles>(Kind::int8, a, b, c),
           "int8: hardware and emulation agree");
    const Words hardware = multiply<HardwareTiles>(Kind::bf16, a, b, c),
                emulated = multiply<EmulatedTiles>(Kind::bf16, a, b, c);
    for (size_t i = 0; i < hardware.size(); ++i) {
      const float h = __builtin_bit_cast(float, hardware[i]), e = __builtin_bit_cast(float, emulated[i]);
      expect(hardware[i] == emulated[i] || (std::isnan(h) && std::isnan(e)),
             "bf16: hardware and emulation agree");
    }
  }
}

int run() {
  test_all<EmulatedTiles>();
  const CpuInfo& cpu = cpu_info();
  const bool hardware = cpu.amx_bf16 && cpu.amx_int8;
  if (hardware) {
    test_all<HardwareTiles>();
    test_twins_agree();
  }
  if (failures) return 1;
  std::puts(hardware ? "good: emulated tiles, hardware" : "good: emulated tiles");
  return 0;
}

}  // namespace
}  // namespace moerun::cpu

int main() {
  return moerun::cpu::run();
}
