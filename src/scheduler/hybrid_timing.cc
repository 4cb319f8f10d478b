// Calibration's verbs of HybridForward: what its layers' experts take, and what follows from it.
#include "src/error.h"
#include "src/scheduler/hybrid_forward.h"

namespace moerun {

TimedLayer HybridForward::timed(const Layer& layer, DType x_type) const {
  return {layer.view, layer.top_k, layer.blobs->layout().bytes, x_type};
}

std::vector<policy::ComputePoint> HybridForward::time_gpu(int layer, DType x_type) {
  check_alive();
  const Layer& l = layers_[layer];
  const cuda::ExpertKernels* kernels = l.kernels[static_cast<int>(x_type)].get();
  if (!kernels) throw InvalidState("a layer is timed on the GPU when it has kernels for this type of x");
  context_->make_current();
  std::vector<policy::ComputePoint> points;
  recovering([&] {
    points = moerun::time_gpu(timed(l, x_type), cpu_kernels_, *kernels, *l.blobs, step_, context_,
                              options_.cache_bytes);
  });
  return points;
}

std::vector<policy::CopyPoint> HybridForward::time_copies(int layer) {
  check_alive();
  const Layer& l = layers_[layer];
  context_->make_current();
  std::vector<policy::CopyPoint> points;
  recovering([&] { points = moerun::time_copies(*l.blobs, l.view.num_experts, context_); });
  return points;
}

void HybridForward::set_cost(int layer, const policy::CostModel& cost) {
  policy::check(cost);
  layers_[layer].cost = cost;
}

}  // namespace moerun
