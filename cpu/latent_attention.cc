#include "cpu/latent_attention.h"

#include <algorithm>

#include "cpu/activations.h"
#include "cpu/arithmetic.h"
#include "cpu/attention_parts.h"
#include "cpu/cpu_info.h"

namespace moerun::cpu {
namespace {

// Heads that are attended together share what is read of the cache: as many as the kernels have in registers,
// and no more queries than whose scores stay in L1 or L2 (heuristic).
constexpr int64_t kLeastHeads = 4, kMostQueries = 64;

void rotate(Pairs pairs, const float* from, const float* cos, const float* sin, int64_t width, float scale,
            float* to) {
  const int64_t half = width / 2;
  for (int64_t i = 0; i < half; ++i) {
    const bool apart = pairs == Pairs::halves, stay = pairs == Pairs::neighbours;
    const float a = from[apart ? i : 2 * i], b = from[apart ? i + half : 2 * i + 1];
    to[stay ? 2 * i : i] = scale * (a * cos[i] - b * sin[i]);
    to[stay ? 2 * i + 1 : i + half] = scale * (b * cos[i + half] + a * sin[i + half]);
  }
}

float* floats(Buffer& buffer, int64_t count) {
  return static_cast<float*>(buffer.at_least(count * int64_t{sizeof(float)}));
}

// Rows that copy_row or a norm fills.
Activations rows_of(Buffer& buffer, int64_t rows, int64_t width, DType type) {
  const int64_t stride = spread(width, size_of(type));
  void* copy = buffer.at_least(rows * stride * size_of(type));
  const Activations to{.data = copy, .stride = stride, .copy = copy};
  for (int64_t row = 0; row < rows; ++row) pad_row(row, width, type, to);
  return to;
}

}  // namespace

// One batch: where everything lies, and what each stage does for one of its items.
struct LatentAttention::Step {
  const AttentionView& layer;
  const AttentionBatch& batch;
  const KernelTable& kernels;
  int64_t group = 1;           // heads that are attended together
  int64_t parts = 1;           // of the keys
  float* projected = nullptr;  // [rows, width]: what `query` gives, latent, shared key
  Activations query_x;         // what `query_up` reads
  DType query_type = DType::f32;
  float* queries = nullptr;  // [rows, heads, head_dim], rows apart by query_stride
  int64_t query_stride = 0;
  float* absorbed = nullptr;  // see absorbed_of
  float* partial = nullptr;
  Activations attended;  // [rows, heads, value_dim]
  DType attended_type = DType::f32;

  const LatentView& latent() const { return layer.latent; }
  int64_t rows() const { return batch.sequences * batch.tokens; }
  int64_t width() const { return layer.query.outputs + latent().rank + latent().rotated; }
  int64_t keys() const { return batch.cache.past + batch.tokens; }
  int64_t room() const { return batch.cache.sequence_stride / latent().rank; }
  int64_t plain_dim() const { return layer.head_dim - latent().rotated; }
  int64_t value_width() const { return layer.heads * latent().value_dim; }
  int64_t groups() const { return (layer.heads + group - 1) / group; }
  int64_t heads_of(int64_t g) const { return std::min(group, layer.heads - g * group); }

  // A query as it meets the cache: latents, then shared keys.
  int64_t rotated_at() const { return round_up(latent().rank, kMostLanes); }
  int64_t absorbed_stride() const { return rotated_at() + round_up(latent().rotated, kMostLanes); }

  // Of the heads of a group, one token after the other.
  float* absorbed_of(int64_t sequence, int64_t g) const {
    return absorbed + (sequence * layer.heads + g * group) * batch.tokens * absorbed_stride();
  }

  KeyParts parts_of(int64_t sequence, int64_t g) const {
    const KeyParts p{.data = partial, .parts = parts, .rows = group * batch.tokens, .width = latent().rank};
    return p.of(sequence * groups() + g);
  }

  // Per thread: scores, and what the mask adds.
  int64_t attend_floats() const {
    return group * batch.tokens * kAttendKeys + kAttendRest + batch.tokens * (keys() / parts + 1);
  }
  // Per thread: sums of latents of one head.
  int64_t latent_stride() const { return round_up(latent().rank, kPad); }

  // Row n of head h in `expand`.
  MatrixView expand_from(int64_t head, int64_t n) const {
    MatrixView m = latent().expand.matrix;
    const int64_t row = head * (plain_dim() + latent().value_dim) + n;
    m.data = offset(m.data, row * m.row_stride, expand_type());
    return m;
  }
  DType expand_type() const { return static_cast<DType>(latent().expand.format); }

  void normalise(const float* x, const float* weight, int64_t width, void* y, DType type) const noexcept {
    kernels.dense.rms_norm({.x = x,
                            .x_type = DType::f32,
                            .weight = weight,
                            .epsilon = layer.epsilon,
                            .width = width,
                            .y = y,
                            .y_type = type});
  }

  // Latent and shared key of one token into the cache, and what it is to be queried by into its place.
  void remember(int64_t row, float* scratch) const noexcept {
    const int64_t sequence = row / batch.tokens, at = batch.cache.past + row % batch.tokens;
    const KeyValues& cache = batch.cache;
    const Rotation& r = batch.rotation;
    const float* here = projected + row * width();
    const float* its_latent = here + layer.query.outputs;
    normalise(its_latent, layer.key_norm, latent().rank,
              offset(cache.keys, (sequence * room() + at) * latent().rank, cache.type), cache.type);
    rotate(latent().pairs, its_latent + latent().rank, r.cos + row * r.width, r.sin + row * r.width, r.width,
           1.0f, scratch);
    kernels.convert(scratch, DType::f32,
                    offset(cache.values, (sequence * room() + at) * latent().rotated, cache.type), cache.type,
                    latent().rotated);
    if (query_x.copy)
      normalise(here, layer.query_norm, layer.query.outputs,
                offset(query_x.copy, row * query_x.stride, query_type), query_type);
  }

  // The queries of one head as they meet the cache.
  void absorb(int64_t head) const noexcept {
    const int64_t g = head / group, tokens = batch.tokens, stride = heads_of(g) * absorbed_stride();
    const MatrixView matrix = expand_from(head, 0);
    const Rotation& r = batch.rotation;
    for (int64_t sequence = 0; sequence < batch.sequences; ++sequence) {
      const float* from = queries + sequence * tokens * query_stride + head * layer.head_dim;
      float* to = absorbed_of(sequence, g) + head % group * absorbed_stride();
      kernels.dense.sum_rows({.weights = from,
                              .weight_stride = query_stride,
                              .rows = tokens,
                              .matrix = matrix.data,
                              .type = expand_type(),
                              .matrix_stride = matrix.row_stride,
                              .count = plain_dim(),
                              .width = latent().rank,
                              .out = to,
                              .out_stride = stride});
      for (int64_t t = 0; t < tokens; ++t, from += query_stride, to += stride) {
        for (int64_t d = 0; d < latent().rank; ++d) to[d] *= layer.scale;
        std::fill(to + latent().rank, to + absorbed_stride(), 0.0f);
        const int64_t angle = (sequence * tokens + t) * r.width;
        rotate(latent().pairs, from + plain_dim(), r.cos + angle, r.sin + angle, r.width, layer.scale,
               to + rotated_at());
      }
    }
  }

  // One part of the keys for the heads of one group and sequence.
  void attend(int64_t item, float* scratch) const noexcept {
    const int64_t part = item % parts, g = item / parts % groups(), sequence = item / parts / groups();
    const KeyRange range{keys() * part / parts, keys() * (part + 1) / parts};
    const int64_t queries_here = heads_of(g) * batch.tokens, rank = latent().rank;
    const KeyValues& cache = batch.cache;
    const void* latents = offset(cache.keys, (sequence * room() + range.first) * rank, cache.type);
    const void* shared =
        offset(cache.values, (sequence * room() + range.first) * latent().rotated, cache.type);
    const KeyParts out = parts_of(sequence, g);
    float* mask = scratch + queries_here * kAttendKeys + kAttendRest;
    kernels.dense.attend({.queries = absorbed_of(sequence, g),
                          .rows = queries_here,
                          .head_dim = rank,
                          .query_stride = absorbed_stride(),
                          .keys = latents,
                          .values = latents,
                          .type = cache.type,
                          .key_stride = rank,
                          .value_stride = rank,
                          .count = range.last - range.first,
                          .bias = mask_bias(kernels, batch, sequence, range, mask),
                          .rows_per_bias = heads_of(g),
                          .bias_stride = range.last - range.first,
                          .out = out.sums(part),
                          .most = out.most(part),
                          .total = out.total(part),
                          .scratch = scratch,
                          .more_keys = shared,
                          .more_dim = latent().rotated,
                          .more_stride = latent().rotated});
  }

  // The values of one head, where the output projection reads them.
  void add_values(int64_t head, const Blocking& blocks, float* scratch) const noexcept {
    const int64_t g = head / group, tokens = batch.tokens, stride = latent_stride();
    for (int64_t row = 0; row < rows(); ++row) {
      float* to = scratch + row * stride;
      const float* sum =
          join_row(parts_of(row / tokens, g), row % tokens * heads_of(g) + head % group, nullptr);
      std::copy_n(sum, latent().rank, to);
      std::fill(to + latent().rank, to + stride, 0.0f);
    }
    const MatrixView matrix = expand_from(head, plain_dim());
    kernels.f32_activations[static_cast<int>(latent().expand.format)].linear(
        {.matrix = &matrix,
         .bias = nullptr,
         .inputs = latent().rank,
         .begin = 0,
         .end = latent().value_dim,
         .x = scratch,
         .x_stride = stride,
         .count = rows(),
         .out = offset(attended.copy, head * latent().value_dim, attended_type),
         .out_type = attended_type,
         .out_stride = attended.stride,
         .blocking = blocks,
         .scratch = {scratch + rows() * stride}});
  }
};

LatentAttention::LatentAttention(const KernelTable& kernels, int threads)
    : kernels_(kernels),
      team_(threads),
      convert_(threads),
      project_(threads),
      remember_(threads),
      query_(threads),
      absorb_(threads),
      attend_(threads),
      value_(threads),
      output_(threads),
      scratch_(threads) {}

int64_t LatentAttention::workspace_bytes() const {
  int64_t total = 0;
  for (const Buffer* b : {&x_, &projected_, &query_x_, &queries_, &absorbed_, &partial_, &attended_})
    total += b->bytes();
  for (const Buffer& b : scratch_) total += b.bytes();
  return total;
}

void LatentAttention::run(const AttentionView& layer, const AttentionBatch& batch) {
  Step step{.layer = layer, .batch = batch, .kernels = kernels_};
  const LatentView& latent = layer.latent;
  const int64_t rows = step.rows(), hidden = layer.query.inputs;
  if (rows == 0) return;
  const auto [in_kernels, in_type] = arithmetic(kernels_, batch.x_type, layer.query.format);
  const auto [up_kernels, up_type] = arithmetic(kernels_, batch.x_type, latent.query_up.format);
  const auto [out_kernels, out_type] = arithmetic(kernels_, batch.x_type, layer.output.format);
  const Blocking in_blocks = blocking(cpu_info(), size_of(in_type)),
                 up_blocks = blocking(cpu_info(), size_of(up_type)),
                 value_blocks = blocking(cpu_info(), sizeof(float)),
                 out_blocks = blocking(cpu_info(), size_of(out_type));

  const int64_t share = (layer.heads * batch.sequences + team_.size() - 1) / team_.size();
  step.group = std::min(
      {layer.heads, round_up(share, kLeastHeads), std::max<int64_t>(kMostQueries / batch.tokens, 1)});
  const int64_t items = batch.sequences * step.groups();
  step.parts = parts_of_keys(team_.size(), items, batch);

  const Activations x = place_activations(batch.x, batch.x_type, batch.x_stride, rows, hidden, in_type, x_);
  step.projected = floats(projected_, rows * step.width());
  step.queries = step.projected;
  step.query_stride = step.width();
  const bool expands = latent.query_up.outputs > 0;
  if (expands) {
    step.query_x = rows_of(query_x_, rows, layer.query.outputs, up_type);
    step.query_type = up_type;
    step.query_stride = layer.heads * layer.head_dim;
    step.queries = floats(queries_, rows * step.query_stride);
  }
  step.absorbed = floats(absorbed_, rows * layer.heads * step.absorbed_stride());
  step.partial = floats(partial_, items * step.parts_of(0, 0).floats());
  step.attended = rows_of(attended_, rows, step.value_width(), out_type);
  step.attended_type = out_type;
  const int64_t float_bytes = sizeof(float);
  const int64_t scratch =
      std::max({scratch_bytes(in_blocks, hidden), scratch_bytes(up_blocks, layer.query.outputs),
                scratch_bytes(out_blocks, step.value_width()), step.attend_floats() * float_bytes,
                latent.rotated * float_bytes,
                rows * step.latent_stride() * float_bytes + scratch_bytes(value_blocks, latent.rank)});
  for (Buffer& b : scratch_) b.at_least(scratch);

  const LinearWork first[2] = {
      LinearWork(*in_kernels, in_blocks, layer.query, x, rows, {step.projected, DType::f32, step.width()},
                 team_.size()),
      LinearWork(*in_kernels, in_blocks, layer.key, x, rows,
                 {step.projected + layer.query.outputs, DType::f32, step.width()}, team_.size())};
  const LinearWork up(*up_kernels, up_blocks, latent.query_up, step.query_x, rows,
                      {step.queries, DType::f32, step.query_stride}, team_.size());
  const LinearWork output(*out_kernels, out_blocks, layer.output, step.attended, rows, batch.out,
                          team_.size());
  for (WorkRanges* w : {&convert_, &project_, &remember_, &query_, &absorb_, &attend_, &value_, &output_})
    w->reset();

  team_.run([&](Member me) noexcept {
    void* scratch_of_thread = scratch_[me.thread].data();
    auto* numbers = static_cast<float*>(scratch_of_thread);
    if (x.copy) {
      convert_.run(me, rows, [&](int64_t t) {
        copy_row(kernels_, batch.x, batch.x_type, batch.x_stride, t, hidden, in_type, x);
      });
      barrier_.wait(me.size);
    }
    project_.run(me, first[0].items() + first[1].items(), [&](int64_t item) {
      const bool is_key = item >= first[0].items();
      first[is_key].run(is_key ? item - first[0].items() : item, scratch_of_thread);
    });
    barrier_.wait(me.size);
    remember_.run(me, rows, [&](int64_t row) { step.remember(row, numbers); });
    barrier_.wait(me.size);
    if (expands) {
      query_.run(me, up.items(), [&](int64_t item) { up.run(item, scratch_of_thread); });
      barrier_.wait(me.size);
    }
    absorb_.run(me, layer.heads, [&](int64_t head) { step.absorb(head); });
    barrier_.wait(me.size);
    attend_.run(me, items * step.parts, [&](int64_t item) { step.attend(item, numbers); });
    barrier_.wait(me.size);
    value_.run(me, layer.heads, [&](int64_t head) { step.add_values(head, value_blocks, numbers); });
    barrier_.wait(me.size);
    output_.run(me, output.items(), [&](int64_t item) { output.run(item, scratch_of_thread); });
  });
}

}  // namespace moerun::cpu
