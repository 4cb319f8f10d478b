#include "src/engine/gpu_store.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "src/error.h"
#include "src/expert_store/quantise.h"

namespace moerun {
namespace {

// What "auto" leaves to others: a step's own memory, and what torch takes for the model's dense parts, its
// keys and values (heuristic).
constexpr int64_t kReservedPart = 8;  // an eighth of the device's memory

std::string in_gibibytes(int64_t bytes) {
  const int64_t tenths = bytes * 10 >> 30;
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " GiB";
}

bool lie_behind_each_other(const std::vector<ExpertView>& blobs, int64_t blob_bytes) {
  const auto* const first = static_cast<const std::byte*>(blobs[0].gate.data);
  for (size_t e = 1; e < blobs.size(); ++e)
    if (blobs[e].gate.data != first + static_cast<int64_t>(e) * blob_bytes) return false;
  return true;
}

}  // namespace

int64_t cache_bytes(const GpuBudget& budget, const cuda::MemoryState& memory) {
  if (budget.kind == GpuBudget::Kind::automatic)
    return std::max<int64_t>(memory.free_bytes - memory.total_bytes / kReservedPart, 0);
  const int64_t bytes = budget.kind == GpuBudget::Kind::bytes
                            ? budget.bytes
                            : static_cast<int64_t>(budget.fraction * static_cast<double>(memory.total_bytes));
  if (bytes > memory.free_bytes)
    throw InvalidArgument("gpu_cache asks for " + in_gibibytes(bytes) + ", but only " +
                          in_gibibytes(memory.free_bytes) + " of the device's " +
                          in_gibibytes(memory.total_bytes) +
                          " are free; lower it, or say gpu_cache=\"auto\" to take what is free");
  return bytes;
}

std::shared_ptr<HostBlobs> store_experts(const cuda::ContextPtr& context, const LayerShape& shape,
                                         const std::vector<ExpertView>& experts, std::shared_ptr<void> owner,
                                         bool pin, const cpu::KernelTable& kernels, const cpu::Team& team) {
  const BlobLayout layout = blob_layout(shape.format, shape.hidden, shape.inter, shape.bias);
  if (pin && is_quantised(shape.format) && lie_behind_each_other(experts, layout.bytes)) {
    const auto* const first = static_cast<const std::byte*>(experts[0].gate.data);
    if (auto blobs = HostBlobs::in_place(context, layout, first, shape.num_experts, std::move(owner)))
      return blobs;
  }
  auto blobs = std::make_shared<HostBlobs>(context, layout, shape.num_experts, pin);
  if (is_quantised(shape.format)) {
    team.run([&](cpu::Member me) noexcept {
      for (int64_t e = me.thread; e < shape.num_experts; e += me.size)
        std::memcpy(blobs->blob(e), experts[e].gate.data, layout.bytes);
    });
  } else {
    std::vector<std::byte*> targets;
    for (int64_t e = 0; e < shape.num_experts; ++e) targets.push_back(blobs->blob(e));
    quantise_experts(experts.data(), static_cast<DType>(shape.format), layout, targets.data(),
                     shape.num_experts, kernels, team);
  }
  return blobs;
}

}  // namespace moerun
