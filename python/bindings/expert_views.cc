#include "python/bindings/expert_views.h"

#include <string>

#include "src/error.h"

namespace moerun {
namespace {

MatrixView matrix(const Addresses& addresses, pybind11::ssize_t expert, const Strides& strides) {
  return {reinterpret_cast<const void*>(addresses.at(expert)), strides.first, strides.second};
}

void check_biases(const Biases& biases, const char* name, pybind11::ssize_t experts, int64_t size) {
  if (!biases || (biases->ndim() == 2 && biases->shape(0) == experts && biases->shape(1) == size)) return;
  std::string found;
  for (pybind11::ssize_t d = 0; d < biases->ndim(); ++d)
    found += (d ? ", " : "") + std::to_string(biases->shape(d));
  throw InvalidArgument(std::string(name) + " must be [" + std::to_string(experts) + ", " +
                        std::to_string(size) + "], got [" + found + "]");
}

const float* bias(const Biases& biases, pybind11::ssize_t expert, int64_t size) {
  return biases ? biases->data() + expert * size : nullptr;
}

}  // namespace

std::vector<ExpertView> expert_views(int64_t hidden, int64_t inter, const Addresses& gate,
                                     const Addresses& up, const Addresses& down,
                                     const Strides& gate_up_strides, const Strides& down_strides,
                                     const Biases& gate_bias, const Biases& up_bias,
                                     const Biases& down_bias) {
  if (gate.size() != up.size() || gate.size() != down.size())
    throw InvalidArgument("gate, up and down must have one address per expert");
  check_biases(gate_bias, "gate_bias", gate.size(), inter);
  check_biases(up_bias, "up_bias", gate.size(), inter);
  check_biases(down_bias, "down_bias", gate.size(), hidden);
  std::vector<ExpertView> experts(gate.size());
  for (pybind11::ssize_t e = 0; e < gate.size(); ++e)
    experts[e] = {.gate = matrix(gate, e, gate_up_strides),
                  .up = matrix(up, e, gate_up_strides),
                  .down = matrix(down, e, down_strides),
                  .gate_bias = bias(gate_bias, e, inter),
                  .up_bias = bias(up_bias, e, inter),
                  .down_bias = bias(down_bias, e, hidden)};
  return experts;
}

}  // namespace moerun
