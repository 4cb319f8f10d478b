// What AMX's tile registers do, in plain C++ for any processor: the twin of tiles.h, bit for bit, so that
// kernels of tiles are tested on machines without them.
//
// TDPBF16PS sums the products of even and of odd k apart, from zero, in the order of k, with fused
// multiply-adds; then adds both, then that to C. Every step rounds to nearest even and treats subnormal
// numbers as zero, coming and going (Intel's manual of instructions, "TDPBF16PS").
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace moerun::cpu {
namespace {

struct EmulatedTiles {
  struct Session {
    int rows;  // of A and C; B has 16
    explicit Session(int rows) : rows(rows) {}
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
  };

  static constexpr int kRowBytes = 64, kWords = kRowBytes / 4;

  template <int N>
  class Tile {
   public:
    static constexpr int number = N;
    explicit Tile(const Session& s) : rows_(N < 6 ? s.rows : 16) {}
    void zero() { std::memset(data_, 0, sizeof(data_)); }
    void load(const void* from, int64_t stride) {
      for (int r = 0; r < rows_; ++r)
        std::memcpy(data_[r], static_cast<const char*>(from) + r * stride, kRowBytes);
    }
    void store(void* to, int64_t stride) const {
      for (int r = 0; r < rows_; ++r) std::memcpy(static_cast<char*>(to) + r * stride, data_[r], kRowBytes);
    }

    template <int A, int B>
    void add_bf16(const Tile<A>& a, const Tile<B>& b) {
      static_assert(N < 4 && (A == 4 || A == 5) && B >= 6, "see HardwareTiles::Session");
      for (int m = 0; m < rows_; ++m) {
        float even[kWords] = {}, odd[kWords] = {};
        for (int k = 0; k < kWords; ++k) {
          const float a0 = low_half(a.data_[m][k]), a1 = high_half(a.data_[m][k]);
          for (int n = 0; n < kWords; ++n) {
            even[n] = normal(__builtin_fmaf(a0, low_half(b.data_[k][n]), even[n]));
            odd[n] = normal(__builtin_fmaf(a1, high_half(b.data_[k][n]), odd[n]));
          }
        }
        for (int n = 0; n < kWords; ++n) {
          const float c = normal(__builtin_bit_cast(float, data_[m][n]));
          data_[m][n] = __builtin_bit_cast(uint32_t, normal(c + normal(even[n] + odd[n])));
        }
      }
    }

    template <int A, int B>
    void add_int8(const Tile<A>& a, const Tile<B>& b) {
      static_assert(N < 4 && (A == 4 || A == 5) && B >= 6, "see HardwareTiles::Session");
      for (int m = 0; m < rows_; ++m)
        for (int k = 0; k < kWords; ++k)
          for (int n = 0; n < kWords; ++n)
            for (int byte = 0; byte < 4; ++byte)
              data_[m][n] += static_cast<uint32_t>(signed_byte(a.data_[m][k], byte) *
                                                   signed_byte(b.data_[k][n], byte));  // wraps around
    }

   private:
    template <int>
    friend class Tile;

    static float normal(float v) { return __builtin_fabsf(v) < 0x1p-126f ? __builtin_copysignf(0.0f, v) : v; }
    static float low_half(uint32_t word) { return normal(__builtin_bit_cast(float, word << 16)); }
    static float high_half(uint32_t word) { return normal(__builtin_bit_cast(float, word & 0xffff0000)); }
    static int signed_byte(uint32_t word, int i) { return static_cast<int8_t>(word >> 8 * i); }

    int rows_;
    uint32_t data_[16][kWords] = {};
  };
};

}  // namespace
}  // namespace moerun::cpu
