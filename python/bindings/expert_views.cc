#include "python/bindings/expert_views.h"

#include "src/error.h"

namespace moerun {
namespace {

MatrixView matrix(const Addresses& addresses, pybind11::ssize_t expert, const Strides& strides) {
  return {reinterpret_cast<const void*>(addresses.at(expert)), strides.first, strides.second};
}

const float* bias(const Biases& biases, pybind11::ssize_t expert, pybind11::ssize_t experts, int64_t size) {
  if (!biases) return nullptr;
  if (biases->size() != experts * size) throw InvalidArgument("biases must have one value per row");
  return biases->data() + expert * size;
}

}  // namespace

std::vector<ExpertView> expert_views(int64_t hidden, int64_t inter, const Addresses& gate,
                                     const Addresses& up, const Addresses& down,
                                     const Strides& gate_up_strides, const Strides& down_strides,
                                     const Biases& gate_bias, const Biases& up_bias,
                                     const Biases& down_bias) {
  if (gate.size() != up.size() || gate.size() != down.size())
    throw InvalidArgument("gate, up and down must have one address per expert");
  std::vector<ExpertView> experts(gate.size());
  for (pybind11::ssize_t e = 0; e < gate.size(); ++e)
    experts[e] = {.gate = matrix(gate, e, gate_up_strides),
                  .up = matrix(up, e, gate_up_strides),
                  .down = matrix(down, e, down_strides),
                  .gate_bias = bias(gate_bias, e, gate.size(), inter),
                  .up_bias = bias(up_bias, e, gate.size(), inter),
                  .down_bias = bias(down_bias, e, gate.size(), hidden)};
  return experts;
}

}  // namespace moerun
