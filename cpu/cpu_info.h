// What this machine's processor has: cores, caches, instruction sets. Read once, from CPUID and sysfs.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cpu/kernel_table.h"

namespace moerun::cpu {

struct CpuInfo {
  std::string model;
  int usable_cores = 1;  // in this process's affinity mask, and no more than a cgroup's CPU quota
  int64_t l1d_bytes = 32 << 10;
  int64_t l2_bytes = 512 << 10;
  int64_t l3_bytes = 0;  // 0 if there is none
  bool avx2 = false, avx_vnni = false;
  bool avx512 = false;  // F, BW, VL and DQ
  bool avx512_vnni = false, avx512_bf16 = false;
  bool amx_bf16 = false, amx_int8 = false;  // and the kernel lets us use the tiles

  std::vector<std::string> instruction_sets() const;  // names of those that are true, for people
};

const CpuInfo& cpu_info();

// The packed activations of a token block take up to 5/8 of L2, from which every tile reads them again.
Blocking blocking(const CpuInfo& info, int64_t activation_bytes);

}  // namespace moerun::cpu
