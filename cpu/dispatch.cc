#include "cpu/dispatch.h"

#include <cstdlib>

#include "cpu/cpu_info.h"
#include "src/error.h"

namespace moerun::cpu {

namespace {

// The row, with the reference's kernels for formats that it has none of its own for.
KernelTable completed(KernelTable row) {
  for (int format = 0; format < kWeightFormats; ++format)
    if (!row.f32_activations[format].gate_up)
      row.f32_activations[format] = ref_kernels().f32_activations[format];
  return row;
}

std::vector<KernelTable> find_rows() {
  const CpuInfo& cpu = cpu_info();
  std::vector<KernelTable> rows;
  if (cpu.amx_bf16 && cpu.avx512_bf16) rows.push_back(completed(amx_kernels()));
  if (cpu.avx512_bf16) rows.push_back(completed(avx512_bf16_kernels()));
  if (cpu.avx512) rows.push_back(completed(avx512_kernels()));
  if (cpu.avx2) rows.push_back(completed(avx2_kernels()));
  if (cpu.avx512_bf16) rows.push_back(completed(amx_emulated_kernels()));
  rows.push_back(ref_kernels());
  return rows;
}

}  // namespace

std::vector<const KernelTable*> available_kernels() {
  static const std::vector<KernelTable> rows = find_rows();
  std::vector<const KernelTable*> pointers;
  for (const KernelTable& row : rows) pointers.push_back(&row);
  return pointers;
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
