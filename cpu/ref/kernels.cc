// The reference row: the formulas of kernel_table.h as plain loops, for any processor and any strides. What
// every other row is tested against; fp32 activations and fp32 sums in the order of k.
#include <algorithm>
#include <cmath>
#include <utility>

#include "cpu/kernel_table.h"
#include "cpu/kernels/weight_value_inl.h"

namespace moerun::cpu {
namespace {

float load(const void* data, DType type, int64_t i) {
  return plain_value({.data = data}, type, i);
}

void store(void* data, DType type, int64_t i, float v) {
  if (type == DType::f32)
    static_cast<float*>(data)[i] = v;
  else
    static_cast<uint16_t*>(data)[i] = type == DType::f16 ? to_f16(v) : to_bf16(v);
}

float sigmoid(float x) {
  return 1.0f / (1.0f + std::exp(-x));
}

float gated(const ActivationSpec& a, float g, float u) {
  switch (a.kind) {
    case Activation::silu:
      return g * sigmoid(g) * u;
    case Activation::gelu:
      return 0.5f * g * (1.0f + std::erf(g * 0.70710678f)) * u;
    case Activation::gelu_tanh:
      return 0.5f * g * (1.0f + std::tanh(0.79788456f * (g + 0.044715f * g * g * g))) * u;
    case Activation::relu2:
      return g > 0 ? g * g * u : g <= 0 ? 0.0f * u : g;
    case Activation::swiglu_oai:
      g = g > a.limit ? a.limit : g;
      u = u > a.limit ? a.limit : u < -a.limit ? -a.limit : u;
      return g * sigmoid(a.alpha * g) * (u + 1.0f);
  }
  return 0.0f;
}

template <WeightFormat W>
float dot(const MatrixView& m, int64_t row, const float* x, int64_t k_count) {
  float sum = 0.0f;
  for (int64_t k = 0; k < k_count; ++k) sum += weight_value<W>(m, row, k) * x[k];
  return sum;
}

template <WeightFormat W>
void gate_up(const GateUpArgs& a) {
  const ExpertView& e = *a.expert;
  for (int64_t i = 0; i < a.count; ++i) {
    const float* x = static_cast<const float*>(a.x) + a.rows[i] * a.x_stride;
    float* h = static_cast<float*>(a.h) + i * a.h_stride;
    for (int64_t n = a.begin; n < a.end; ++n) {
      const float g = dot<W>(e.gate, n, x, a.hidden) + (e.gate_bias ? e.gate_bias[n] : 0.0f);
      const float u = dot<W>(e.up, n, x, a.hidden) + (e.up_bias ? e.up_bias[n] : 0.0f);
      h[n] = gated(a.activation, g, u);
    }
    if (a.end == a.inter)
      for (int64_t n = a.inter; n < a.h_stride; ++n) h[n] = 0.0f;
  }
}

template <WeightFormat W>
void down(const DownArgs& a) {
  const ExpertView& e = *a.expert;
  for (int64_t i = 0; i < a.count; ++i) {
    const float* h = static_cast<const float*>(a.h) + i * a.h_stride;
    float* y = a.y + a.rows[i] * a.y_stride;
    for (int64_t n = a.begin; n < a.end; ++n)
      y[n] += a.weights[i] * (dot<W>(e.down, n, h, a.inter) + (e.down_bias ? e.down_bias[n] : 0.0f));
  }
}

template <WeightFormat W>
void linear(const LinearArgs& a) {
  for (int64_t i = 0; i < a.count; ++i) {
    const float* x = static_cast<const float*>(a.x) + i * a.x_stride;
    for (int64_t n = a.begin; n < a.end; ++n) {
      const float sum = dot<W>(*a.matrix, n, x, a.inputs) + (a.bias ? a.bias[n] : 0.0f);
      store(a.out, a.out_type, i * a.out_stride + n, sum);
    }
  }
}

void attend(const AttendArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const auto score = [&](int64_t t) {
      float s = 0.0f;
      for (int64_t d = 0; d < a.head_dim; ++d)
        s += a.queries[r * a.query_stride + d] * load(a.keys, a.type, t * a.key_stride + d);
      return a.bias ? s + a.bias[r / a.rows_per_bias * a.bias_stride + t] : s;
    };
    float* out = a.out + r * a.head_dim;
    for (int64_t d = 0; d < a.head_dim; ++d) out[d] = 0.0f;
    a.most[r] = score(0);
    for (int64_t t = 1; t < a.count; ++t) a.most[r] = std::fmax(a.most[r], score(t));
    a.total[r] = 0.0f;
    for (int64_t t = 0; t < a.count; ++t) {
      const float weight = std::exp(score(t) - a.most[r]);
      a.total[r] += weight;
      for (int64_t d = 0; d < a.head_dim; ++d)
        out[d] += weight * load(a.values, a.type, t * a.value_stride + d);
    }
  }
}

void attend_prompt(const PromptArgs& a) {
  for (int64_t r = a.begin; r < a.end; ++r) {
    const int64_t token = r / a.group, head = r % a.group;
    const int64_t query = token * a.query_stride + head * a.query_head_stride,
                  out = token * a.out_stride + head * a.out_head_stride;
    const int64_t count = a.mask ? a.keys_count : std::min(a.keys_count, a.past + token + 1);
    const auto score = [&](int64_t t) {
      float s = 0.0f;
      for (int64_t d = 0; d < a.head_dim; ++d)
        s += load(a.queries, a.type, query + d) * load(a.keys, a.type, t * a.key_stride + d);
      s *= a.scale;
      if (!a.mask) return s;
      const int64_t at = token * a.mask_stride + t;
      if (a.mask_adds) return std::fmax(kPromptUnseen, s + load(a.mask, a.mask_type, at));
      return static_cast<const uint8_t*>(a.mask)[at] ? s : s + kPromptUnseen;
    };
    float most = a.sinks ? a.sinks[head] : score(0);
    for (int64_t t = 0; t < count; ++t) most = std::fmax(most, score(t));
    float total = a.sinks ? std::exp(a.sinks[head] - most) : 0.0f;
    for (int64_t t = 0; t < count; ++t) total += std::exp(score(t) - most);
    for (int64_t d = 0; d < a.value_dim; ++d) {
      float sum = 0.0f;
      for (int64_t t = 0; t < count; ++t)
        sum += std::exp(score(t) - most) * load(a.values, a.type, t * a.value_stride + d);
      store(a.out, a.type, out + d, sum / total);
    }
  }
}

void rms_norm(const NormArgs& a) {
  float squares = 0.0f;
  for (int64_t i = 0; i < a.width; ++i) squares += load(a.x, a.x_type, i) * load(a.x, a.x_type, i);
  const float scale = 1.0f / std::sqrt(squares / static_cast<float>(a.width) + a.epsilon);
  for (int64_t i = 0; i < a.width; ++i) store(a.y, a.y_type, i, load(a.x, a.x_type, i) * scale * a.weight[i]);
}

void convert(const void* from, DType from_type, void* to, DType to_type, int64_t n) {
  for (int64_t i = 0; i < n; ++i) store(to, to_type, i, load(from, from_type, i));
}

uint64_t read(const void* data, size_t n) {
  const auto* p = static_cast<const uint64_t*>(data);
  uint64_t sum = 0;
  for (size_t i = 0; i < n / sizeof(uint64_t); ++i) sum += p[i];
  return sum;
}

double dot_peak(int64_t rounds, float* sink) {
  float sum[8] = {}, factor = 1e-9f;
  for (int64_t r = 0; r < rounds; ++r) {
    __asm__ volatile("" : "+x"(factor));
    for (float& s : sum) s += factor * factor;
  }
  *sink = sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
  return 2.0 * 8 * rounds;
}

template <WeightFormat W>
constexpr ExpertKernels expert_kernels() {
  return {gate_up<W>, down<W>, linear<W>};
}

template <int... Formats>
constexpr KernelTable make_table(std::integer_sequence<int, Formats...>) {
  return {
      .isa = "ref",
      .f32_activations = {expert_kernels<static_cast<WeightFormat>(Formats)>()...},
      .bf16_activations = {},
      .dense = {attend, rms_norm, attend_prompt},
      .convert = convert,
      .quantise = ref_quantise,
      .limits = {.read = read, .dot = {dot_peak}},
  };
}

constexpr KernelTable kTable = make_table(std::make_integer_sequence<int, kWeightFormats>());

}  // namespace

const KernelTable& ref_kernels() {
  return kTable;
}

}  // namespace moerun::cpu
