#include "cpu/attention_forward.h"

#include <algorithm>

#include "cpu/activations.h"
#include "cpu/arithmetic.h"
#include "cpu/attention_parts.h"
#include "cpu/cpu_info.h"

namespace moerun::cpu {
namespace {

// (x[i], x[i + half]) turned by the angle whose cosine and sine are cos[i], sin[i].
void rotate(float* x, const float* cos, const float* sin, int64_t width) {
  const int64_t half = width / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    x[i] = a * cos[i] - b * sin[i];
    x[i + half] = b * cos[i + half] + a * sin[i + half];
  }
}

}  // namespace

// One batch: where everything lies, and what each stage does for one of its items.
struct AttentionForward::Step {
  const AttentionView& layer;
  const AttentionBatch& batch;
  const KernelTable& kernels;
  int64_t parts = 1;  // of a head's keys
  float* projected = nullptr;
  float* partial = nullptr;
  Activations attended;
  DType attended_type = DType::f32;

  int64_t rows() const { return batch.sequences * batch.tokens; }
  int64_t group() const { return layer.heads / layer.kv_heads; }
  int64_t group_rows() const { return group() * batch.tokens; }
  int64_t query_width() const { return layer.heads * layer.head_dim; }
  int64_t width() const { return query_width() + 2 * layer.kv_heads * layer.head_dim; }
  int64_t keys() const { return batch.cache.past + batch.tokens; }
  int64_t query_stride() const { return round_up(layer.head_dim, kMostLanes); }

  float* query(int64_t row, int64_t head) const { return projected + row * width() + head * layer.head_dim; }
  float* key(int64_t row, int64_t head) const { return query(row, layer.heads + head); }
  float* value(int64_t row, int64_t head) const { return query(row, layer.heads + layer.kv_heads + head); }

  // Of one head of one sequence.
  KeyParts parts_of(int64_t item) const {
    const KeyParts p{.data = partial, .parts = parts, .rows = group_rows(), .width = layer.head_dim};
    return p.of(item);
  }

  // Per thread: queries, scores, and what the mask adds.
  int64_t scratch_floats() const {
    return group_rows() * (query_stride() + kAttendKeys) + batch.tokens * (keys() / parts + 1);
  }

  void clip_and_normalise(int64_t row) const noexcept {
    float* projections = query(row, 0);
    if (layer.norm == HeadNorm::row) {
      normalise(projections, layer.query_norm, query_width());
      normalise(key(row, 0), layer.key_norm, layer.kv_heads * layer.head_dim);
    }
    if (layer.clip > 0)
      for (int64_t i = 0; i < width(); ++i)
        projections[i] = std::clamp(projections[i], -layer.clip, layer.clip);
  }

  void normalise(float* x, const float* weight, int64_t width) const noexcept {
    kernels.dense.rms_norm({.x = x,
                            .x_type = DType::f32,
                            .weight = weight,
                            .epsilon = layer.epsilon,
                            .width = width,
                            .y = x,
                            .y_type = DType::f32});
  }

  void finish_head(float* head, const float* weight, int64_t row) const noexcept {
    if (layer.norm == HeadNorm::head) normalise(head, weight, layer.head_dim);
    const Rotation& r = batch.rotation;
    rotate(head, r.cos + row * r.width, r.sin + row * r.width, r.width);
  }

  // Keys and values of the new tokens of one head into the cache.
  void remember(int64_t sequence, int64_t kv_head) const noexcept {
    const KeyValues& cache = batch.cache;
    for (int64_t t = 0; t < batch.tokens; ++t) {
      const int64_t row = sequence * batch.tokens + t;
      const int64_t to =
          sequence * cache.sequence_stride + kv_head * cache.head_stride + (cache.past + t) * layer.head_dim;
      finish_head(key(row, kv_head), layer.key_norm, row);
      kernels.convert(key(row, kv_head), DType::f32, offset(cache.keys, to, cache.type), cache.type,
                      layer.head_dim);
      kernels.convert(value(row, kv_head), DType::f32, offset(cache.values, to, cache.type), cache.type,
                      layer.head_dim);
    }
  }

  // One part of the keys of one head of one sequence. The last part holds the new ones.
  void attend(int64_t item, float* scratch) const noexcept {
    const int64_t part = item % parts, kv_head = item / parts % layer.kv_heads,
                  sequence = item / parts / layer.kv_heads;
    const int64_t first = keys() * part / parts, last = keys() * (part + 1) / parts;
    if (part == parts - 1) remember(sequence, kv_head);
    const int64_t stride = query_stride();
    float* queries = scratch;
    for (int64_t r = 0; r < group_rows(); ++r) {
      const int64_t row = sequence * batch.tokens + r / group();
      float* to = queries + r * stride;
      std::copy_n(query(row, kv_head * group() + r % group()), layer.head_dim, to);
      finish_head(to, layer.query_norm, row);
      for (int64_t d = 0; d < layer.head_dim; ++d) to[d] *= layer.scale;
      std::fill(to + layer.head_dim, to + stride, 0.0f);
    }
    const KeyValues& cache = batch.cache;
    const int64_t at =
        sequence * cache.sequence_stride + kv_head * cache.head_stride + first * layer.head_dim;
    float* scores = queries + group_rows() * stride;
    const KeyParts out = parts_of(item / parts);
    kernels.dense.attend(
        {.queries = queries,
         .rows = group_rows(),
         .head_dim = layer.head_dim,
         .query_stride = stride,
         .keys = offset(cache.keys, at, cache.type),
         .values = offset(cache.values, at, cache.type),
         .type = cache.type,
         .key_stride = layer.head_dim,
         .value_stride = layer.head_dim,
         .count = last - first,
         .bias = mask_bias(kernels, batch, sequence, {first, last}, scores + group_rows() * kAttendKeys),
         .rows_per_bias = group(),
         .bias_stride = last - first,
         .out = out.sums(part),
         .most = out.most(part),
         .total = out.total(part),
         .scratch = scores});
    if (parts == 1) join(item);
  }

  // The parts of one head of one sequence become its output, where the output projection reads it.
  void join(int64_t item) const noexcept {
    const int64_t kv_head = item % layer.kv_heads, sequence = item / layer.kv_heads;
    for (int64_t r = 0; r < group_rows(); ++r) {
      const int64_t head = kv_head * group() + r % group(), row = sequence * batch.tokens + r / group();
      const float* result = join_row(parts_of(item), r, layer.sinks ? &layer.sinks[head] : nullptr);
      kernels.convert(result, DType::f32,
                      offset(attended.copy, row * attended.stride + head * layer.head_dim, attended_type),
                      attended_type, layer.head_dim);
    }
  }
};

AttentionForward::AttentionForward(const KernelTable& kernels, int threads)
    : kernels_(kernels),
      team_(threads),
      convert_(threads),
      project_(threads),
      normalise_(threads),
      attend_(threads),
      join_(threads),
      output_(threads),
      scratch_(threads),
      latent_(kernels, threads) {}

int64_t AttentionForward::workspace_bytes() const {
  int64_t total =
      latent_.workspace_bytes() + x_.bytes() + projected_.bytes() + partial_.bytes() + attended_.bytes();
  for (const Buffer& b : scratch_) total += b.bytes();
  return total;
}

void AttentionForward::run(const AttentionView& layer, const AttentionBatch& batch) {
  if (layer.latent.rank) return latent_.run(layer, batch);
  Step step{.layer = layer, .batch = batch, .kernels = kernels_};
  const int64_t rows = step.rows(), heads = batch.sequences * layer.kv_heads;
  if (rows == 0) return;
  const auto [in_kernels, in_type] = arithmetic(kernels_, batch.x_type, layer.query.format);
  const auto [out_kernels, out_type] = arithmetic(kernels_, batch.x_type, layer.output.format);
  const Blocking in_blocks = blocking(cpu_info(), size_of(in_type)),
                 out_blocks = blocking(cpu_info(), size_of(out_type));
  const int64_t hidden = layer.query.inputs;
  const Activations x = place_activations(batch.x, batch.x_type, batch.x_stride, rows, hidden, in_type, x_);
  step.parts = parts_of_keys(team_.size(), heads, batch);
  step.projected = static_cast<float*>(projected_.at_least(rows * step.width() * sizeof(float)));
  step.partial = static_cast<float*>(
      partial_.at_least(heads * step.parts_of(0).floats() * static_cast<int64_t>(sizeof(float))));
  step.attended_type = out_type;
  step.attended.stride = spread(step.query_width(), size_of(out_type));
  step.attended.copy = attended_.at_least(rows * step.attended.stride * size_of(out_type));
  step.attended.data = step.attended.copy;
  for (int64_t row = 0; row < rows; ++row) pad_row(row, step.query_width(), out_type, step.attended);
  const int64_t scratch =
      std::max({scratch_bytes(in_blocks, hidden), scratch_bytes(out_blocks, step.query_width()),
                step.scratch_floats() * int64_t{sizeof(float)}});
  for (Buffer& b : scratch_) b.at_least(scratch);

  const auto projection = [&](const LinearView& matrix, float* to) {
    return LinearWork(*in_kernels, in_blocks, matrix, x, rows, {to, DType::f32, step.width()}, team_.size());
  };
  const LinearWork projections[3] = {projection(layer.query, step.query(0, 0)),
                                     projection(layer.key, step.key(0, 0)),
                                     projection(layer.value, step.value(0, 0))};
  const LinearWork output(*out_kernels, out_blocks, layer.output, step.attended, rows, batch.out,
                          team_.size());
  const int64_t items[3] = {projections[0].items(), projections[1].items(), projections[2].items()};
  const bool normalise = layer.norm == HeadNorm::row || layer.clip > 0;
  for (WorkRanges* w : {&convert_, &project_, &normalise_, &attend_, &join_, &output_}) w->reset();

  team_.run([&](Member me) noexcept {
    void* scratch_of_thread = scratch_[me.thread].data();
    if (x.copy) {
      convert_.run(me, rows, [&](int64_t t) {
        copy_row(kernels_, batch.x, batch.x_type, batch.x_stride, t, hidden, in_type, x);
      });
      barrier_.wait(me.size);
    }
    project_.run(me, items[0] + items[1] + items[2], [&](int64_t item) {
      int which = 0;
      while (item >= items[which]) item -= items[which++];
      projections[which].run(item, scratch_of_thread);
    });
    barrier_.wait(me.size);
    if (normalise) {
      normalise_.run(me, rows, [&](int64_t row) { step.clip_and_normalise(row); });
      barrier_.wait(me.size);
    }
    attend_.run(me, heads * step.parts,
                [&](int64_t item) { step.attend(item, static_cast<float*>(scratch_of_thread)); });
    barrier_.wait(me.size);
    if (step.parts > 1) {
      join_.run(me, heads, [&](int64_t item) { step.join(item); });
      barrier_.wait(me.size);
    }
    output_.run(me, output.items(), [&](int64_t item) { output.run(item, scratch_of_thread); });
  });
}

}  // namespace moerun::cpu
