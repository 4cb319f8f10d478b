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

// One of an expert's three matrices: where from and where to.
struct Part {
  const char* name;
  MatrixView ExpertView::* source;
  const BlobMatrix* target;
  int64_t first_row, rows;
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
  Quantiser(const ExpertView* experts, DType from, const BlobLayout& layout, std::byte* const* blobs,
            const cpu::KernelTable& kernels)
      : experts_(experts),
        from_(from),
        layout_(layout),
        format_(info(layout.format)),
        blobs_(blobs),
        kernels_(kernels) {}

  // Most rows whose fp32 values are needed at once, times their columns.
  int64_t scratch_floats() const {
    const int64_t rows = std::max<int64_t>(format_.block_rows, kTransposedRows);
    return rows * std::max(layout_.gate_up.row_stride, layout_.down.row_stride);
  }

  void rows(const Part& part, int64_t expert, int64_t begin, int64_t end, float* scratch,
            Failure& failure) const noexcept {
    const MatrixView& source = experts_[expert].*part.source;
    const int64_t step = std::max<int64_t>(format_.block_rows, source.col_stride == 1 ? 1 : kTransposedRows);
    for (int64_t row = begin; row < end; row += step) {
      const int64_t count = std::min(step, end - row);
      for (int64_t r = 0; r < count; r += kTransposedRows)  // an fp8 block has more
        load_rows(kernels_, source, from_, row + r, std::min(kTransposedRows, count - r),
                  part.target->columns, part.target->row_stride, scratch + r * part.target->row_stride);
      for (int64_t r = 0; r < count; r += format_.block_rows) {
        const int64_t block = std::min<int64_t>(format_.block_rows, count - r);
        const cpu::QuantiseResult result =
            store(part, expert, row + r, block, scratch + r * part.target->row_stride);
        if (result != cpu::QuantiseResult::ok) return failure.report(result, expert, part.name, row + r);
      }
    }
  }

  // What is not codes, scales or zeros: the gaps between sections, the biases.
  void biases(int64_t expert) const noexcept {
    if (!layout_.bias) return;
    const ExpertView& e = experts_[expert];
    const int64_t inter = layout_.down.columns, hidden = layout_.gate_up.columns;
    auto* gate_up = reinterpret_cast<float*>(blobs_[expert] + layout_.gate_up_bias);
    std::copy_n(e.gate_bias, inter, gate_up);
    std::copy_n(e.up_bias, inter, gate_up + inter);
    std::copy_n(e.down_bias, hidden, reinterpret_cast<float*>(blobs_[expert] + layout_.down_bias));
  }

 private:
  cpu::QuantiseResult store(const Part& part, int64_t expert, int64_t row, int64_t count,
                            const float* weights) const noexcept {
    const BlobMatrix& m = *part.target;
    std::byte* blob = blobs_[expert];
    std::byte* codes = blob + m.codes + (part.first_row + row) * m.row_bytes;
    if (!is_quantised(layout_.format)) {
      kernels_.convert(weights, DType::f32, codes, static_cast<DType>(layout_.format), m.row_stride);
      return cpu::QuantiseResult::ok;
    }
    const int64_t first_scale_row = part.first_row ? m.scale_rows / 2 : 0;
    const int64_t scale = (first_scale_row + row / format_.block_rows) * m.scale_stride;
    return kernels_.quantise(
        {.format = layout_.format,
         .weights = weights,
         .rows = count,
         .columns = m.row_stride,
         .codes = reinterpret_cast<uint8_t*>(codes),
         .scales = blob + m.scales + scale * size_of(format_.scale),
         .zeros = format_.zeros ? reinterpret_cast<uint8_t*>(blob + m.zeros) + scale : nullptr});
  }

  const ExpertView* experts_;
  const DType from_;
  const BlobLayout& layout_;
  const FormatInfo& format_;
  std::byte* const* blobs_;
  const cpu::KernelTable& kernels_;
};

[[noreturn]] void raise(const Failure& f, WeightFormat format) {
  const std::string where = "expert " + std::to_string(f.expert) + ", " + f.matrix + ", row " +
                            std::to_string(f.row) +
                            (info(format).block_rows > 1 ? " or one of the rows after it" : "") + ": ";
  if (f.result == cpu::QuantiseResult::not_finite)
    throw InvalidArgument(where + "a weight is infinite or not a number, which " + info(format).name +
                          " cannot hold; keep the experts unquantised or repair the checkpoint");
  throw InvalidArgument(where + "a weight is too large for the fp16 scales of " + info(format).name +
                        "; use int8, fp8_b128 or an unquantised format");
}

}  // namespace

void quantise_experts(const ExpertView* experts, DType from, const BlobLayout& layout,
                      std::byte* const* blobs, int64_t num_experts, const cpu::KernelTable& kernels,
                      const cpu::Team& team) {
  const int64_t inter = layout.down.columns, hidden = layout.gate_up.columns;
  const Part parts[3] = {{"gate", &ExpertView::gate, &layout.gate_up, 0, inter},
                         {"up", &ExpertView::up, &layout.gate_up, inter, inter},
                         {"down", &ExpertView::down, &layout.down, 0, hidden}};
  const int64_t inter_items = ceil_div(inter, kItemRows),
                items = 2 * inter_items + ceil_div(hidden, kItemRows);
  const Quantiser quantiser(experts, from, layout, blobs, kernels);
  std::vector<std::unique_ptr<float[]>> scratch(team.size());
  for (auto& s : scratch) s.reset(new float[quantiser.scratch_floats()]);
  Failure failure;
  cpu::WorkRanges clear(team.size()), work(team.size());
  clear.reset();
  work.reset();
  // Gaps between sections are zero too: the same weights give the same bytes.
  team.run([&](cpu::Member me) noexcept {
    clear.run(me, num_experts, [&](int64_t e) {
      std::memset(blobs[e], 0, layout.bytes);
      quantiser.biases(e);
    });
  });
  team.run([&](cpu::Member me) noexcept {
    work.run(me, num_experts * items, [&](int64_t i) {
      if (failure.taken.load(std::memory_order_relaxed)) return;
      const int64_t expert = i / items, item = i % items;
      const Part& part = parts[std::min<int64_t>(item / inter_items, 2)];
      const int64_t begin = (item - (&part - parts) * inter_items) * kItemRows;
      quantiser.rows(part, expert, begin, std::min(begin + kItemRows, part.rows), scratch[me.thread].get(),
                     failure);
    });
  });
  if (failure.taken) raise(failure, layout.format);
}

}  // namespace moerun
