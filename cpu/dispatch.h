// Chooses the row of the kernel table: the best that this machine has, or the one that MOERUN_ISA or the
// caller names.
#pragma once
#include <string>
#include <vector>

#include "cpu/kernel_table.h"

namespace moerun::cpu {

// Rows that this machine can run, best first; "ref" is always the last.
std::vector<const KernelTable*> available_kernels();

// The row called `isa`; an empty name means the environment variable MOERUN_ISA, or else the best.
// Throws InvalidArgument, listing what this machine has, if it lacks the row.
const KernelTable& choose_kernels(const std::string& isa);

// Which kernels serve a batch (the reference's where the row has none for this format), and what its
// activations become: bf16 stays bf16 where the row multiplies bf16 pairs, everything else becomes fp32.
struct Arithmetic {
  const ExpertKernels* kernels;
  DType activations;
};
Arithmetic arithmetic(const KernelTable& row, DType x, WeightFormat weights);

}  // namespace moerun::cpu
