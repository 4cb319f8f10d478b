// AMX's tile registers: the hardware behind cpu/amx/tile_kernel_inl.h. emulated_tiles.h is its twin.
//
// A tile is 16 rows of 64 bytes. C += A B, where row k of B holds words (two bf16 or four int8) of K for 16
// columns, as pack_inl.h lays tokens out, and A is rows of a matrix as they lie. Instructions are written out
// because GCC's macros take register numbers only as literals; no compiler option is needed for them.
#pragma once
#include <cstdint>
#include <cstring>

namespace moerun::cpu {
namespace {

struct HardwareTiles {
  // The calling thread's use of the tiles, 0 to 3 as C, 4 and 5 as A, 6 and 7 as B. A and C have `rows` rows.
  class Session {
   public:
    explicit Session(int rows) {
      struct alignas(64) {  // as LDTILECFG reads it
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {};
        uint8_t rows[16] = {};
      } config;
      for (int i = 0; i < 8; ++i) {
        config.row_bytes[i] = 64;
        config.rows[i] = static_cast<uint8_t>(i < 6 ? rows : 16);
      }
      __asm__ volatile("ldtilecfg %0" ::"m"(config));
    }
    ~Session() { __asm__ volatile("tilerelease" :::); }  // or every change of threads saves 8 KiB
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
  };

  template <int N>
  class Tile {
   public:
    static constexpr int number = N;
    explicit Tile(const Session&) {}
    void zero() { __asm__ volatile("tilezero %%tmm%c0" ::"i"(N)); }
    // Rows are `stride` bytes apart.
    void load(const void* from, int64_t stride) {
      __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(N) : "memory");
    }
    void store(void* to, int64_t stride) const {
      __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(N) : "memory");
    }
    // fp32 sums of bf16 products
    template <int A, int B>
    void add_bf16(const Tile<A>&, const Tile<B>&) {
      __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(N), "i"(A), "i"(B));
    }
    // int32 sums of products of signed bytes
    template <int A, int B>
    void add_int8(const Tile<A>&, const Tile<B>&) {
      __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(N), "i"(A), "i"(B));
    }
  };
};

}  // namespace
}  // namespace moerun::cpu
