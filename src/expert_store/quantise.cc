#include "src/expert_store/quantise.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cpu/work_ranges.h"
#include "src/error.h"

namespace moerun {
namespace {

constexpr int64_t kItemRows = 128;       // a work item: a multiple of every format's block_rows
constexpr int64_t kTransposedRows = 32;  // rows gathered at once from a matrix that is stored by columns

constexpr int64_t ceil_div(int64_t n, int64_t d) {
  return (n + d - 1) / d;
}

// One matrix, a part of a section of a blob: where from and where to.
struct Part {
  const char* name;
  MatrixView source;
  const BlobMatrix* target;
  std::byte* blob;
  int64_t first_row, first_scale_row, rows;
};

// Where an item went wrong; the first to come wins.
struct Failure {
  std::atomic<bool> taken{false};
  cpu::QuantiseResult result = cpu::QuantiseResult::ok;
  int64_t expert = 0, row = 0;
  const char* matrix = nullptr;

  void report(cpu::QuantiseResult r, int64_t e, const char* m, int64_t n) noexcept {
    if (taken.exchange(true)) return;
    result = r, expert = e, matrix = m, row = n;
  }
};

// Converts rows [row, row + count) to fp32, filled with zeros up to `filled` columns.
void load_rows(const cpu::KernelTable& kernels, const MatrixView& m, DType type, int64_t row, int64_t count,
               int64_t columns, int64_t filled, float* to) {
  const auto* base = static_cast<const char*>(m.data);
  if (m.col_stride == 1) {
    for (int64_t r = 0; r < count; ++r)
      kernels.convert(base + (row + r) * m.row_stride * size_of(type), type, to + r * filled, DType::f32,
                      columns);
  } else {
    float run[2 * kTransposedRows];
    for (int64_t k = 0; k < columns; ++k) {
      const int64_t first = k * m.col_stride + row * m.row_stride;
      kernels.convert(base + first * size_of(type), type, run, DType::f32, (count - 1) * m.row_stride + 1);
      for (int64_t r = 0; r < count; ++r) to[r * filled + k] = run[r * m.row_stride];
    }
  }
  for (int64_t r = 0; r < count; ++r) std::fill(to + r * filled + columns, to + (r + 1) * filled, 0.0f);
}

class Quantiser {
 public:
  Quantiser(DType from, WeightFormat to, const cpu::KernelTable& kernels)
      : from_(from), to_(to), format_(info(to)), kernels_(kernels) {}

  // Most rows whose fp32 values are needed at once, times their columns.
  int64_t scratch_floats(const BlobMatrix& m) const {
    return std::max<int64_t>(format_.block_rows, kTransposedRows) * m.row_stride;
  }

  // Rows [begin, end) of a part of expert number `expert`.
  void rows(const Part& part, int64_t expert, int64_t begin, int64_t end, float* scratch,
            Failure& failure) const noexcept {
    const int64_t filled = part.target->row_stride;
    const int64_t step =
        std::max<int64_t>(format_.block_rows, part.source.col_stride == 1 ? 1 : kTransposedRows);
    for (int64_t row = begin; row < end; row += step) {
      const int64_t count = std::min(step, end - row);
      for (int64_t r = 0; r < count; r += kTransposedRows)  // an fp8 block has more
        load_rows(kernels_, part.source, from_, row + r, std::min(kTransposedRows, count - r),
                  part.target->columns, filled, scratch + r * filled);
      for (int64_t r = 0; r < count; r += format_.block_rows) {
        const int64_t block = std::min<int64_t>(format_.block_rows, count - r);
        const cpu::QuantiseResult result = store(part, row + r, block, scratch + r * filled);
        if (result != cpu::QuantiseResult::ok) return failure.report(result, expert, part.name, row + r);
      }
    }
  }

 private:
  cpu::QuantiseResult store(const Part& part, int64_t row, int64_t count,
                            const float* weights) const noexcept {
    const BlobMatrix& m = *part.target;
    std::byte* codes = part.blob + m.codes + (part.first_row + row) * m.row_bytes;
    if (!is_quantised(to_)) {
      kernels_.convert(weights, DType::f32, codes, static_cast<DType>(to_), m.row_stride);
      return cpu::QuantiseResult::ok;
    }
    const int64_t scale = (part.first_scale_row + row / format_.block_rows) * m.scale_stride;
    return kernels_.quantise(
        {.format = to_,
         .weights = weights,
         .rows = count,
         .columns = m.row_stride,
         .codes = reinterpret_cast<uint8_t*>(codes),
         .scales = part.blob + m.scales + scale * size_of(format_.scale),
         .zeros = format_.zeros ? reinterpret_cast<uint8_t*>(part.blob + m.zeros) + scale : nullptr});
  }

  const DType from_;
  const WeightFormat to_;
  const FormatInfo& format_;
  const cpu::KernelTable& kernels_;
};

// What is not codes, scales or zeros of a blob: the gaps between sections, the biases.
void copy_biases(const BlobLayout& layout, const ExpertView& e, std::byte* blob) noexcept {
  if (!layout.bias) return;
  const int64_t inter = layout.down.columns, hidden = layout.gate_up.columns;
  auto* gate_up = reinterpret_cast<float*>(blob + layout.gate_up_bias);
  std::copy_n(e.gate_bias, inter, gate_up);
  std::copy_n(e.up_bias, inter, gate_up + inter);
  std::copy_n(e.down_bias, hidden, reinterpret_cast<float*>(blob + layout.down_bias));
}

[[noreturn]] void raise(const Failure& f, WeightFormat format) {
  const std::string expert = f.expert < 0 ? "" : "expert " + std::to_string(f.expert) + ", ";
  const std::string where = expert + f.matrix + ", row " + std::to_string(f.row) +
                            (info(format).block_rows > 1 ? " or one of the rows after it" : "") + ": ";
  if (f.result == cpu::QuantiseResult::not_finite)
    throw InvalidArgument(where + "a weight is infinite or not a number, which " + info(format).name +
                          " cannot hold; leave it unquantised or repair the checkpoint");
  throw InvalidArgument(where + "a weight is too large for the fp16 scales of " + info(format).name +
                        "; use int8, fp8_b128 or an unquantised format");
}

}  // namespace

void quantise_experts(const ExpertView* experts, DType from, const BlobLayout& layout,
                      std::byte* const* blobs, int64_t num_experts, const cpu::KernelTable& kernels,
                      const cpu::Team& team) {
  const int64_t inter = layout.down.columns, hidden = layout.gate_up.columns;
  const int64_t inter_items = ceil_div(inter, kItemRows),
                items = 2 * inter_items + ceil_div(hidden, kItemRows);
  const auto part_of = [&](int64_t expert, int64_t which) -> Part {
    const ExpertView& e = experts[expert];
    std::byte* blob = blobs[expert];
    if (which == 0) return {"gate", e.gate, &layout.gate_up, blob, 0, 0, inter};
    if (which == 1) return {"up", e.up, &layout.gate_up, blob, inter, layout.gate_up.scale_rows / 2, inter};
    return {"down", e.down, &layout.down, blob, 0, 0, hidden};
  };
  const Quantiser quantiser(from, layout.format, kernels);
  const int64_t floats =
      std::max(quantiser.scratch_floats(layout.gate_up), quantiser.scratch_floats(layout.down));
  std::vector<std::unique_ptr<float[]>> scratch(team.size());
  for (auto& s : scratch) s.reset(new float[floats]);
  Failure failure;
  cpu::WorkRanges clear(team.size()), work(team.size());
  clear.reset();
  work.reset();
  // Gaps between sections are zero too: the same weights give the same bytes.
  team.run([&](cpu::Member me) noexcept {
    clear.run(me, num_experts, [&](int64_t e) {
      std::memset(blobs[e], 0, layout.bytes);
      copy_biases(layout, experts[e], blobs[e]);
    });
  });
  team.run([&](cpu::Member me) noexcept {
    work.run(me, num_experts * items, [&](int64_t i) {
      if (failure.taken.load(std::memory_order_relaxed)) return;
      const int64_t expert = i / items, item = i % items, which = std::min<int64_t>(item / inter_items, 2);
      const Part part = part_of(expert, which);
      const int64_t begin = (item - which * inter_items) * kItemRows;
      quantiser.rows(part, expert, begin, std::min(begin + kItemRows, part.rows), scratch[me.thread].get(),
                     failure);
    });
  });
  if (failure.taken) raise(failure, layout.format);
}

void quantise_matrix(const MatrixView& matrix, DType from, const MatrixLayout& layout, std::byte* blob,
                     const cpu::KernelTable& kernels, const cpu::Team& team) {
  const BlobMatrix& target = layout.matrix;
  const Quantiser quantiser(from, layout.format, kernels);
  std::vector<std::unique_ptr<float[]>> scratch(team.size());
  for (auto& s : scratch) s.reset(new float[quantiser.scratch_floats(target)]);
  Failure failure;
  cpu::WorkRanges work(team.size());
  work.reset();
  std::memset(blob, 0, layout.bytes);
  const Part part{"the matrix", matrix, &target, blob, 0, 0, target.rows};
  team.run([&](cpu::Member me) noexcept {
    work.run(me, ceil_div(part.rows, kItemRows), [&](int64_t item) {
      if (failure.taken.load(std::memory_order_relaxed)) return;
      const int64_t begin = item * kItemRows;
      quantiser.rows(part, -1, begin, std::min(begin + kItemRows, part.rows), scratch[me.thread].get(),
                     failure);
    });
  });
  if (failure.taken) raise(failure, layout.format);
}

}  // namespace moerun
