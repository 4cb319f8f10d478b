// The compiled kernels of layers of one shape, and how they are launched: the C++ side of
// python/moerun/kernels/contract.py, where grids, lists and memory are described. Called by the scheduler.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cuda/handles.h"
#include "cuda/kernel.h"
#include "src/types.h"

namespace moerun::cuda {

// A piece of work of one launch, as the kernels read it (TILE_FIELDS).
struct Tile {
  int32_t slot;
  int32_t first_pair, pairs;
  int32_t inter_begin, inter_end;
  int32_t first_row;
};
static_assert(sizeof(Tile) == 24);

// Where the results of one pair lie in y.
struct PairRows {
  int32_t first = 0, count = 0;
};

// What compiling gives (contract.Kernel, .Regime, .LayerKernels).
struct CompiledKernel {
  std::string function, image;
  std::vector<uint32_t> parameter_bytes;
  int num_warps = 4;
  int shared_bytes = 0;
  int tile_rows = 1, tile_tokens = 0, split = 1;
};
struct CompiledRegime {
  int tile_tokens = 0;
  CompiledKernel gate_up, down;
  std::optional<CompiledKernel> activate;
};
struct CompiledKernels {
  int64_t hidden = 0, inter = 0, top_k = 0;
  DType x_type = DType::f32, compute_type = DType::f32;
  int64_t h_stride = 0, y_stride = 0;
  std::vector<CompiledRegime> regimes;
  CompiledKernel combine;
};

class ExpertKernels {
 public:
  // Loads the modules. Throws InvalidArgument if kernels and shape do not fit together, GpuError otherwise.
  ExpertKernels(const ContextPtr& context, const CompiledKernels& compiled);

  struct Regime {
    int tile_tokens, gate_up_rows, down_rows, gate_up_split, down_split;
    Kernel gate_up, down;
    std::optional<Kernel> activate;
  };
  const std::vector<Regime>& regimes() const { return regimes_; }  // by tiles of more and more tokens
  // For one launch, by the number of pairs of each of its experts.
  const Regime& choose(std::span<const int32_t> loads) const;

  // Device addresses of one launch. `tiles` begins at the launch's first tile.
  struct Addresses {
    DevicePtr x, slab, h, partial, y, tiles, pair_token, pair_weight;
  };
  void launch(const StreamView& stream, const Regime& regime, const Addresses& at, int64_t tiles) const;
  // cpu: 0 where the CPU had no share.
  void combine(const StreamView& stream, DevicePtr y, DevicePtr token_rows, DevicePtr cpu, DevicePtr out,
               int64_t tokens) const;

  const CompiledKernels& shape() const { return shape_; }  // without images

 private:
  CompiledKernels shape_;
  int multiprocessors_;
  std::vector<Regime> regimes_;
  Kernel combine_;
};

}  // namespace moerun::cuda
