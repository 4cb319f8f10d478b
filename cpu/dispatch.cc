#include "cpu/dispatch.h"

#include <cstdlib>

#include "cpu/cpu_info.h"
#include "src/error.h"

namespace moerun::cpu {

std::vector<const KernelTable*> available_kernels() {
  const CpuInfo& cpu = cpu_info();
  std::vector<const KernelTable*> rows;
  const bool bf16 = cpu.avx512_bf16 && cpu.avx512_vnni;
  if (cpu.amx_bf16 && bf16) rows.push_back(&amx_kernels());
  if (bf16) rows.push_back(&avx512_bf16_kernels());
  if (cpu.avx512_vnni) rows.push_back(&avx512_vnni_kernels());
  if (cpu.avx512) rows.push_back(&avx512_kernels());
#ifdef MOERUN_AVX_VNNI
  if (cpu.avx_vnni) rows.push_back(&avx_vnni_kernels());
#endif
  if (cpu.avx2) rows.push_back(&avx2_kernels());
  if (bf16) rows.push_back(&amx_emulated_kernels());
  rows.push_back(&ref_kernels());
  return rows;
}

const KernelTable& choose_kernels(const std::string& isa) {
  const char* environment = std::getenv("MOERUN_ISA");
  const std::string wanted = !isa.empty() ? isa : environment ? environment : "";
  const auto rows = available_kernels();
  if (wanted.empty()) return *rows.front();
  std::string names;
  for (const KernelTable* row : rows) {
    if (wanted == row->isa) return *row;
    names += (names.empty() ? "" : ", ") + std::string(row->isa);
  }
  throw InvalidArgument("instruction set '" + wanted + "' is not available; this machine has: " + names +
                        (isa.empty() ? " (it was named by MOERUN_ISA)" : ""));
}

}  // namespace moerun::cpu
