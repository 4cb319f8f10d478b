// What the environment asks of the stand-in driver (fakecuda.h lists the variables).
#pragma once
#include <cstdint>
#include <string>

namespace fakecuda {

struct Options {
  int devices = 1;
  int init_result = 0;  // of cuInit
  int driver_version = 12080;
  int compute = 90;
  int image_compute = 90;
  int64_t memory_bytes = int64_t{1} << 30;
  int64_t pinned_bytes = int64_t{4} << 30;
  bool can_register = true;
  bool can_register_read_only = true;
  int scratch_pointers = 2;
  int connections = 0;                               // 0: every stream has one of its own
  int64_t h2d_bytes_per_s = 0, d2h_bytes_per_s = 0;  // 0: as fast as memcpy
  uint64_t shake_seed = 0;
  int64_t shake_us = 0;
  std::string fail;

  // As NVIDIA's devices of that compute capability have.
  int shared_bytes_per_block() const {
    constexpr int kOfGraphicsCards = 99 * 1024, kOfAmpere = 163 * 1024, kOfHopperAndLater = 227 * 1024;
    if (compute == 86 || compute == 89 || compute == 120) return kOfGraphicsCards;
    return compute < 90 ? kOfAmpere : kOfHopperAndLater;
  }
};

Options read_options();

}  // namespace fakecuda
