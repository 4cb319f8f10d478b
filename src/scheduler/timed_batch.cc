#include "src/scheduler/timed_batch.h"

#include <algorithm>

namespace moerun {

TimedBatch::TimedBatch(const cpu::KernelTable& kernels, DType x_type, int64_t hidden, int64_t top_k,
                       int64_t experts, int64_t load)
    : experts_(experts), load_(load), top_k_(std::min(top_k, experts)) {
  const int64_t tokens = load * ((experts + top_k_ - 1) / top_k_);
  std::vector<float> values(tokens * hidden);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 13) / 8 - 0.75f;
  x_.resize(values.size() * size_of(x_type));
  out_.resize(x_.size());
  kernels.convert(values.data(), DType::f32, x_.data(), x_type, static_cast<int64_t>(values.size()));
  ids_.resize(tokens * top_k_);
  weights_.assign(ids_.size(), 1.0f / static_cast<float>(top_k_));
  batch_ = {.x = x_.data(),
            .x_type = x_type,
            .x_stride = hidden,
            .out = out_.data(),
            .out_type = x_type,
            .out_stride = hidden,
            .routing = {.ids = ids_.data(),
                        .ids_are_64_bit = false,
                        .ids_stride = top_k_,
                        .weights = weights_.data(),
                        .weights_stride = top_k_,
                        .tokens = tokens,
                        .top_k = top_k_}};
}

const cpu::Batch& TimedBatch::of(int64_t first, int64_t ring) {
  for (size_t i = 0; i < ids_.size(); ++i) {
    const auto token = static_cast<int64_t>(i) / top_k_, rank = static_cast<int64_t>(i) % top_k_;
    const int64_t expert = token / load_ * top_k_ + rank;
    ids_[i] = expert < experts_ ? static_cast<int32_t>((first + expert) % ring) : -1;
  }
  return batch_;
}

}  // namespace moerun
