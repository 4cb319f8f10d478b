#include "cpu/cpu_info.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>

#include "cpu/topology.h"

namespace moerun::cpu {
namespace {

std::string read_line(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

// sysfs writes cache sizes as "1024K".
int64_t parse_size(const std::string& text) {
  if (text.empty()) return 0;
  const int64_t value = std::strtoll(text.c_str(), nullptr, 10);
  return text.back() == 'K' ? value << 10 : text.back() == 'M' ? value << 20 : value;
}

void read_caches(CpuInfo& info) {
  for (int index = 0; index < 8; ++index) {
    const std::string dir = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
    const std::string level = read_line(dir + "level"), type = read_line(dir + "type");
    const int64_t size = parse_size(read_line(dir + "size"));
    if (size <= 0 || type == "Instruction") continue;
    if (level == "1") info.l1d_bytes = size;
    if (level == "2") info.l2_bytes = size;
    if (level == "3") info.l3_bytes = size;
  }
}

// Containers often limit CPU time by quota and leave the affinity mask alone.
int cgroup_quota_cores() {
  std::ifstream v2("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (!(v2 >> quota >> period)) {
    quota = read_line("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
    period = std::strtod(read_line("/sys/fs/cgroup/cpu/cpu.cfs_period_us").c_str(), nullptr);
  }
  const double allowed = std::strtod(quota.c_str(), nullptr);  // "max" and "-1" mean no limit
  return allowed > 0 && period > 0 ? std::max(1, static_cast<int>(std::ceil(allowed / period))) : 1 << 20;
}

int usable_cores() {
  return std::min(static_cast<int>(usable_cpus().size()), cgroup_quota_cores());
}

uint64_t enabled_register_state() {
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low | static_cast<uint64_t>(high) << 32;
}

// Linux gives AMX's tile registers only to processes that ask for them.
bool request_amx_tiles() {
  constexpr long kArchRequestXcompPerm = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kArchRequestXcompPerm, kTileData) == 0;
}

void read_instruction_sets(CpuInfo& info) {
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return;
  const bool fma = c & bit_FMA, f16c = c & bit_F16C, os_saves = c & bit_OSXSAVE;
  if (!os_saves || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
  const uint64_t state = enabled_register_state();
  const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6, tiles = (state & 0x60000) == 0x60000;
  info.avx2 = ymm && fma && f16c && (b & bit_AVX2);
  info.avx512 =
      info.avx2 && zmm && (b & bit_AVX512F) && (b & bit_AVX512BW) && (b & bit_AVX512VL) && (b & bit_AVX512DQ);
  info.avx512_vnni = info.avx512 && (c & bit_AVX512VNNI);
  const bool amx = tiles && (d & 1u << 24) && request_amx_tiles();
  info.amx_bf16 = amx && info.avx512 && (d & 1u << 22);
  info.amx_int8 = amx && info.avx512 && (d & 1u << 25);
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) {
    info.avx_vnni = info.avx2 && (a & 1u << 4);
    info.avx512_bf16 = info.avx512 && (a & 1u << 5);
  }
}

std::string model_name() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);)
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  return "unknown x86-64 processor";
}

CpuInfo detect() {
  CpuInfo info;
  info.model = model_name();
  info.usable_cores = usable_cores();
  read_caches(info);
  read_instruction_sets(info);
  return info;
}

}  // namespace

std::vector<std::string> CpuInfo::instruction_sets() const {
  std::vector<std::string> names;
  if (avx2) names.push_back("avx2");
  if (avx_vnni) names.push_back("avx_vnni");
  if (avx512) names.push_back("avx512");
  if (avx512_vnni) names.push_back("avx512_vnni");
  if (avx512_bf16) names.push_back("avx512_bf16");
  if (amx_bf16) names.push_back("amx_bf16");
  if (amx_int8) names.push_back("amx_int8");
  return names;
}

const CpuInfo& cpu_info() {
  static const CpuInfo info = detect();
  return info;
}

Blocking blocking(const CpuInfo& info, int64_t activation_bytes) {
  return {.panel_bytes = info.l2_bytes / 8 * 5, .element_bytes = activation_bytes};
}

}  // namespace moerun::cpu
