#include "src/engine/layer.h"

#include <string>

#include "src/error.h"
#include "src/expert_store/blob_layout.h"

namespace moerun {
namespace {

void check_strides(const MatrixView& m, WeightFormat format, int64_t rows, int64_t columns, const char* name,
                   size_t expert) {
  if (is_quantised(format)) {
    if (m.data && m.scales && m.col_stride == 1 && m.row_stride >= columns &&
        (m.zeros || !info(format).zeros))
      return;
    throw InvalidArgument("expert " + std::to_string(expert) + ", " + name +
                          ": quantised weights must lie in a blob");
  }
  if (!m.data)
    throw InvalidArgument("expert " + std::to_string(expert) + ", " + name + ": the address is null");
  const bool row_major = m.col_stride == 1 && m.row_stride >= columns;
  const bool column_major = (m.row_stride == 1 || m.row_stride == 2) && m.col_stride >= rows;
  if (row_major || column_major) return;
  throw InvalidArgument(
      "expert " + std::to_string(expert) + ", " + name + ": strides (" + std::to_string(m.row_stride) + ", " +
      std::to_string(m.col_stride) + ") of a [" + std::to_string(rows) + ", " + std::to_string(columns) +
      "] matrix are not supported; rows or columns must be contiguous (columns may alternate "
      "between gate and up): make the tensor contiguous");
}

}  // namespace

Layer::Layer(int index, const LayerShape& shape, std::vector<ExpertView> experts, std::shared_ptr<void> owner)
    : index_(index), shape_(shape), experts_(std::move(experts)), owner_(std::move(owner)) {
  if (shape.num_experts < 1 || shape.hidden < 1 || shape.inter < 1)
    throw InvalidArgument("a layer needs at least one expert and positive sizes");
  if (static_cast<int64_t>(experts_.size()) != shape.num_experts)
    throw InvalidArgument("the layer has " + std::to_string(shape.num_experts) + " experts, but memory for " +
                          std::to_string(experts_.size()) + " was given");
  for (size_t e = 0; e < experts_.size(); ++e) {
    check_strides(experts_[e].gate, shape.format, shape.inter, shape.hidden, "gate", e);
    check_strides(experts_[e].up, shape.format, shape.inter, shape.hidden, "up", e);
    check_strides(experts_[e].down, shape.format, shape.hidden, shape.inter, "down", e);
  }
  stats.expert_tokens.assign(shape.num_experts, 0);
}

cpu::LayerView Layer::view() const {
  return {.experts = experts_.data(),
          .num_experts = shape_.num_experts,
          .hidden = shape_.hidden,
          .inter = shape_.inter,
          .format = shape_.format,
          .activation = shape_.activation};
}

int64_t Layer::expert_bytes() const {
  return weight_bytes(shape_.format, shape_.hidden, shape_.inter);
}

}  // namespace moerun
