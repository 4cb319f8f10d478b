#include "cpu/grouping.h"

#include <algorithm>

namespace moerun::cpu {
namespace {

int64_t id_at(const Routing& r, int64_t token, int64_t k) {
  const int64_t i = token * r.ids_stride + k;
  return r.ids_are_64_bit ? static_cast<const int64_t*>(r.ids)[i] : static_cast<const int32_t*>(r.ids)[i];
}

float weight_at(const KernelTable& kernels, const Routing& r, int64_t token, int64_t k) {
  const int64_t i = token * r.weights_stride + k;
  if (r.weights_type == DType::f32) return static_cast<const float*>(r.weights)[i];
  float wide;
  kernels.convert(static_cast<const uint16_t*>(r.weights) + i, r.weights_type, &wide, DType::f32, 1);
  return wide;
}

}  // namespace

int64_t Groups::largest() const {
  int64_t most = 0;
  for (int64_t a = 0; a < active(); ++a) most = std::max<int64_t>(most, offsets[a + 1] - offsets[a]);
  return most;
}

void group_by_expert(const KernelTable& kernels, const Routing& routing, int64_t first, int64_t count,
                     int64_t num_experts, Groups& groups, const int32_t* share) {
  const auto valid = [&](int64_t id) { return id >= 0 && id < num_experts && (!share || share[id] > 0); };
  // A counting sort; `offsets` first counts, then holds where each expert's next pair goes.
  auto& next = groups.offsets;
  next.assign(num_experts + 1, 0);
  for (int64_t t = first; t < first + count; ++t)
    for (int64_t k = 0; k < routing.top_k; ++k)
      if (const int64_t id = id_at(routing, t, k); valid(id)) ++next[id];
  groups.experts.clear();
  int32_t total = 0;
  for (int64_t e = 0; e < num_experts; ++e) {
    const int32_t pairs = next[e];
    if (pairs > 0) groups.experts.push_back(static_cast<int32_t>(e));
    next[e] = total;
    total += pairs;
  }
  groups.rows.resize(total);
  groups.weights.resize(total);
  for (int64_t t = first; t < first + count; ++t)
    for (int64_t k = 0; k < routing.top_k; ++k)
      if (const int64_t id = id_at(routing, t, k); valid(id)) {
        const int32_t at = next[id]++;
        groups.rows[at] = static_cast<int32_t>(t - first);
        groups.weights[at] = weight_at(kernels, routing, t, k);
      }
  // next[e] is now where expert e ends: keep the ends of the active ones.
  int64_t a = 0;
  int32_t begin = 0;
  for (const int32_t e : groups.experts) {
    const int32_t end = next[e];
    next[a++] = begin;
    begin = end;
  }
  next[a] = total;
  next.resize(a + 1);
}

}  // namespace moerun::cpu
