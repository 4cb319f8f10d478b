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
// activations become. Where the row multiplies bf16 pairs, bf16 stays bf16, and any x meets quantised weights
// as bf16: rounding x costs 2^-9, far below what those formats lose. Everything else becomes fp32.
struct Arithmetic {
  const ExpertKernels* kernels;
  DType activations;
};
Arithmetic arithmetic(const KernelTable& row, DType x, WeightFormat weights);

}  // namespace moerun::cpu
