#include "tests/fakecuda/emulators/moe.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "src/expert_store/blob_layout.h"
#include "tests/fakecuda/emulators/expert_blob.h"
#include "tests/fakecuda/emulators/numbers.h"

namespace fakecuda {
namespace {

using moerun::Activation;
using moerun::DType;

constexpr int64_t kSplitStep = 128;  // elements along which sums are split

// What is compiled into a kernel: the lines of contract.description().
struct Shape {
  explicit Shape(const Launch& launch)
      : format(weight_format_of(launch.property("format"))),
        x(dtype_of(launch.property("x"))),
        compute(dtype_of(launch.property("compute"))),
        activation(launch.property("activation")),
        alpha(std::stof(launch.property("alpha"))),
        limit(std::stof(launch.property("limit"))),
        bias(launch.number("bias") != 0),
        hidden(launch.number("hidden")),
        inter(launch.number("inter")),
        top_k(launch.number("top_k")),
        h_stride(launch.number("h_stride")),
        y_stride(launch.number("y_stride")),
        tile_rows(launch.number("tile_rows")),
        split(launch.number("split")),
        layout(moerun::blob_layout(format, hidden, inter, bias)) {}

  moerun::WeightFormat format;
  DType x, compute;
  std::string activation;
  float alpha, limit;
  bool bias;
  int64_t hidden, inter, top_k, h_stride, y_stride, tile_rows, split;
  moerun::BlobLayout layout;
};

// contract.TILE_FIELDS
struct Tile {
  int32_t slot, first_pair, pairs, inter_begin, inter_end, first_row;
};

// Part `s` of `split` of [begin, end).
struct Span {
  int64_t begin, end;
};
Span part(Span all, int64_t s, int64_t split) {
  const int64_t steps = (all.end - all.begin + kSplitStep - 1) / kSplitStep;
  const int64_t each = (steps + split - 1) / split * kSplitStep;
  return {std::min(all.end, all.begin + s * each), std::min(all.end, all.begin + (s + 1) * each)};
}

float activate(const Shape& shape, float g, float u) {
  const auto sigmoid = [](float v) { return 1.0f / (1.0f + std::exp(-v)); };
  if (shape.activation == "silu") return g * sigmoid(g) * u;
  if (shape.activation == "gelu") return 0.5f * g * (1.0f + std::erf(g * std::sqrt(0.5f))) * u;
  if (shape.activation == "gelu_tanh") return g * sigmoid(2 * 0.79788456f * (g + 0.044715f * g * g * g)) * u;
  if (shape.activation == "relu2") return std::max(0.0f, g) * std::max(0.0f, g) * u;
  g = std::min(g, shape.limit);  // swiglu_oai
  u = std::clamp(u, -shape.limit, shape.limit);
  return g * sigmoid(shape.alpha * g) * (u + 1);
}

float dot(const std::vector<float>& a, const std::vector<float>& b) {
  float sum = 0;
  for (size_t k = 0; k < a.size(); ++k) sum += a[k] * b[k];
  return sum;
}

uint64_t blob_address(const Launch& launch, const Shape& shape, const Tile& tile) {
  return launch.pointer(1) + static_cast<uint64_t>(tile.slot) * static_cast<uint64_t>(shape.layout.bytes);
}

uint64_t element(uint64_t base, int64_t index, int64_t bytes) {
  return base + static_cast<uint64_t>(index * bytes);
}

// Elements [begin, end) of row `row`, widened.
std::vector<float> read_row(const Launch& launch, uint64_t base, DType type, int64_t row, int64_t stride,
                            Span span) {
  const int64_t bytes = moerun::size_of(type), count = span.end - span.begin;
  const auto* const data =
      launch.read<std::byte>(element(base, row * stride + span.begin, bytes), count * bytes);
  return widen(data, type, count);
}

void write_row(const Launch& launch, uint64_t base, DType type, int64_t row, int64_t stride, Span span,
               const std::vector<float>& values) {
  const int64_t bytes = moerun::size_of(type), count = span.end - span.begin;
  auto* const data = launch.write<std::byte>(element(base, row * stride + span.begin, bytes), count * bytes);
  narrow(values, type, data);
}

// The rows of the result that the grid reaches.
int64_t reached(const Launch& launch, const Shape& shape, int64_t rows) {
  return std::min(rows, int64_t{launch.grid.x} * shape.tile_rows);
}

std::vector<Tile> tiles_of(const Launch& launch) {
  const auto* const tiles = launch.read<Tile>(launch.pointer(3), launch.grid.y);
  std::vector<Tile> all(tiles, tiles + launch.grid.y);
  std::erase_if(all, [](const Tile& tile) { return tile.pairs == 0; });
  return all;
}

void apply_bias(const Launch& launch, const Shape& shape, const ExpertBlob& blob, Span rows,
                std::vector<float>& gate, std::vector<float>& up) {
  if (!shape.bias) return;
  const std::vector<float> gate_bias = blob.gate_up_bias(launch, rows.begin, rows.end);
  const std::vector<float> up_bias =
      blob.gate_up_bias(launch, shape.inter + rows.begin, shape.inter + rows.end);
  for (size_t i = 0; i < gate.size(); ++i) {
    gate[i] += gate_bias[i];
    up[i] += up_bias[i];
  }
}

void write_h(const Launch& launch, const Shape& shape, uint64_t h, int64_t pair, Span rows,
             const std::vector<float>& gate, const std::vector<float>& up) {
  std::vector<float> values(gate.size());
  for (size_t i = 0; i < gate.size(); ++i) values[i] = activate(shape, gate[i], up[i]);
  write_row(launch, h, shape.compute, pair, shape.h_stride, rows, values);
}

}  // namespace

void emulate_gate_up(const Launch& launch) {
  const Shape shape(launch);
  const uint64_t x = launch.pointer(0), out = launch.pointer(2), pair_token = launch.pointer(4);
  for (const Tile& tile : tiles_of(launch)) {
    const ExpertBlob blob(shape.layout, blob_address(launch, shape, tile), shape.compute);
    const Span rows{tile.inter_begin, std::min<int64_t>(tile.inter_end, reached(launch, shape, shape.inter))};
    for (int64_t s = 0; s < shape.split; ++s) {
      const Span k = part({0, shape.hidden}, s, shape.split);
      const Matrix gate_rows = blob.gate_up(launch, rows.begin, rows.end, k.begin, k.end);
      const Matrix up_rows =
          blob.gate_up(launch, shape.inter + rows.begin, shape.inter + rows.end, k.begin, k.end);
      for (int64_t pair = tile.first_pair; pair < tile.first_pair + tile.pairs; ++pair) {
        const int32_t token = *launch.read<int32_t>(element(pair_token, pair, 4), 1);
        const std::vector<float> row = read_row(launch, x, shape.x, token, shape.hidden, k);
        std::vector<float> gate, up;
        for (const auto& weights : gate_rows) gate.push_back(dot(weights, row));
        for (const auto& weights : up_rows) up.push_back(dot(weights, row));
        if (shape.split == 1) {
          apply_bias(launch, shape, blob, rows, gate, up);
          write_h(launch, shape, out, pair, rows, gate, up);
        } else {
          const int64_t partial = (pair * shape.split + s) * 2;
          write_row(launch, out, DType::f32, partial, shape.h_stride, rows, gate);
          write_row(launch, out, DType::f32, partial + 1, shape.h_stride, rows, up);
        }
      }
    }
  }
}

void emulate_activate(const Launch& launch) {
  const Shape shape(launch);
  const uint64_t partial = launch.pointer(0), h = launch.pointer(2);
  for (const Tile& tile : tiles_of(launch)) {
    const ExpertBlob blob(shape.layout, blob_address(launch, shape, tile), shape.compute);
    const Span rows{tile.inter_begin, std::min<int64_t>(tile.inter_end, reached(launch, shape, shape.inter))};
    for (int64_t pair = tile.first_pair; pair < tile.first_pair + tile.pairs; ++pair) {
      std::vector<float> sums[2];
      for (int64_t s = 0; s < shape.split; ++s) {
        for (int64_t which = 0; which < 2; ++which) {
          const std::vector<float> term = read_row(
              launch, partial, DType::f32, (pair * shape.split + s) * 2 + which, shape.h_stride, rows);
          sums[which].resize(term.size(), 0.0f);
          for (size_t i = 0; i < term.size(); ++i) sums[which][i] += term[i];
        }
      }
      apply_bias(launch, shape, blob, rows, sums[0], sums[1]);
      write_h(launch, shape, h, pair, rows, sums[0], sums[1]);
    }
  }
}

void emulate_down(const Launch& launch) {
  const Shape shape(launch);
  const uint64_t h = launch.pointer(0), y = launch.pointer(2), pair_weight = launch.pointer(4);
  const Span rows{0, reached(launch, shape, shape.hidden)};
  for (const Tile& tile : tiles_of(launch)) {
    const ExpertBlob blob(shape.layout, blob_address(launch, shape, tile), shape.compute);
    for (int64_t s = 0; s < shape.split; ++s) {
      const Span k = part({tile.inter_begin, tile.inter_end}, s, shape.split);
      const Matrix down_rows = blob.down(launch, rows.begin, rows.end, k.begin, k.end);
      const bool adds_bias = shape.bias && tile.inter_begin == 0 && s == 0;
      for (int64_t i = 0; i < tile.pairs; ++i) {
        const int64_t pair = tile.first_pair + i;
        const float weight = *launch.read<float>(element(pair_weight, pair, 4), 1);
        const std::vector<float> row = read_row(launch, h, shape.compute, pair, shape.h_stride, k);
        std::vector<float> values;
        for (const auto& weights : down_rows) values.push_back(dot(weights, row));
        if (adds_bias) {
          const std::vector<float> bias = blob.down_bias(launch, rows.begin, rows.end);
          for (size_t n = 0; n < values.size(); ++n) values[n] += bias[n];
        }
        for (float& value : values) value *= weight;
        write_row(launch, y, DType::f32, tile.first_row + i * shape.split + s, shape.y_stride, rows, values);
      }
    }
  }
}

void emulate_combine(const Launch& launch) {
  const Shape shape(launch);
  const uint64_t y = launch.pointer(0), token_rows = launch.pointer(1), cpu = launch.pointer(2),
                 out = launch.pointer(3);
  const bool has_cpu = launch.parameter<int32_t>(4) != 0;
  const Span columns{0, reached(launch, shape, shape.hidden)};
  for (int64_t token = 0; token < launch.grid.y; ++token) {
    std::vector<float> sum(static_cast<size_t>(columns.end), 0.0f);
    const auto* const rows =
        launch.read<int32_t>(element(token_rows, token * shape.top_k * 2, 4), shape.top_k * 2);
    for (int64_t j = 0; j < shape.top_k; ++j) {
      for (int64_t r = rows[2 * j]; r < rows[2 * j] + rows[2 * j + 1]; ++r) {
        const std::vector<float> term = read_row(launch, y, DType::f32, r, shape.y_stride, columns);
        for (size_t n = 0; n < term.size(); ++n) sum[n] += term[n];
      }
    }
    if (has_cpu) {
      const std::vector<float> term = read_row(launch, cpu, DType::f32, token, shape.hidden, columns);
      for (size_t n = 0; n < term.size(); ++n) sum[n] += term[n];
    }
    write_row(launch, out, shape.x, token, shape.hidden, columns, sum);
  }
}

}  // namespace fakecuda
