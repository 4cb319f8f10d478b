// Experts as Python gives them, an address per matrix (moerun.layer_spec.ExpertMemory), turned into the
// core's views.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <utility>
#include <vector>

#include "src/types.h"

namespace moerun {

using Addresses = pybind11::array_t<uint64_t, pybind11::array::c_style>;           // [E]
using Biases = std::optional<pybind11::array_t<float, pybind11::array::c_style>>;  // [E, rows]
using Strides = std::pair<int64_t, int64_t>;  // elements: from row to row, from column to column

// Throws InvalidArgument if the numbers of addresses or biases differ.
std::vector<ExpertView> expert_views(int64_t hidden, int64_t inter, const Addresses& gate,
                                     const Addresses& up, const Addresses& down,
                                     const Strides& gate_up_strides, const Strides& down_strides,
                                     const Biases& gate_bias, const Biases& up_bias, const Biases& down_bias);

}  // namespace moerun
