// Experts in fp32, fp16 or bf16 into blobs of any format. Called by python/bindings when a layer is loaded;
// the work is shared by a team, a block of rows at a time, and the result does not depend on who did what.
#pragma once
#include <cstddef>

#include "cpu/kernel_table.h"
#include "cpu/team.h"
#include "src/expert_store/blob_layout.h"

namespace moerun {

// Writes every byte of blobs[e], e < num_experts. Biases are copied if the layout has them. Throws
// InvalidArgument, naming expert, matrix and rows, if a weight is not finite or too large for the format.
void quantise_experts(const ExpertView* experts, DType from, const BlobLayout& layout,
                      std::byte* const* blobs, int64_t num_experts, const cpu::KernelTable& kernels,
                      const cpu::Team& team);

// The same for one matrix of a dense layer.
void quantise_matrix(const MatrixView& matrix, DType from, const MatrixLayout& layout, std::byte* blob,
                     const cpu::KernelTable& kernels, const cpu::Team& team);

}  // namespace moerun
