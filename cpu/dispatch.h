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

}  // namespace moerun::cpu
