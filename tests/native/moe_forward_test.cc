// Drives the core without Python, so that the sanitizers see all of it: layers of odd sizes in exact
// allocations, every format and layout, teams of 1 to 3 threads on one or more nodes, several callers at
// once, and the scheduler. Arguments: the folder of a fake OpenMP runtime. Prints what is wrong and
// returns 1.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "cpu/cpu_info.h"
#include "cpu/moe_forward.h"
#include "src/expert_store/blob_layout.h"
#include "src/expert_store/node_placement.h"
#include "src/scheduler/scheduler.h"

namespace moerun {
namespace {

using cpu::KernelTable;

struct Ignore : cpu::Observer {
  void on_groups(const cpu::Groups&) override {}
  void on_spans(const std::vector<std::array<cpu::Span, cpu::kPhases>>&, int64_t) override {}
};

// Exactly as many bytes as asked for: one more is an error that AddressSanitizer sees. `offset` bytes are
// skipped first.
struct Block {
  std::unique_ptr<char[]> memory;
  char* data = nullptr;
  Block(int64_t bytes, int64_t offset) : memory(new char[bytes + offset]), data(memory.get() + offset) {}
};

enum Layout { rows, columns, interleaved };

struct Layer {
  cpu::LayerView view;
  std::vector<ExpertView> experts;
  std::vector<Block> blocks;
  std::vector<float> biases;
};

// `count` random numbers in any format.
Block numbers(int64_t count, DType type, int64_t offset, std::mt19937& random) {
  std::normal_distribution<float> normal(0.0f, 0.2f);
  std::vector<float> wide(count);
  for (float& v : wide) v = normal(random);
  std::vector<char> converted(count * size_of(type));
  cpu::ref_kernels().convert(wide.data(), DType::f32, converted.data(), type, count);
  Block block(count * size_of(type), offset);
  std::copy(converted.begin(), converted.end(), block.data);
  return block;
}

Layer make_layer(int64_t num_experts, int64_t hidden, int64_t inter, DType type, Layout layout,
                 Activation activation, std::mt19937& random) {
  Layer layer;
  layer.biases.assign(inter + hidden, 0.25f);
  const auto block = [&](int64_t count) {
    layer.blocks.push_back(numbers(count, type, 2, random));
    return layer.blocks.back().data;
  };
  for (int64_t e = 0; e < num_experts; ++e) {
    ExpertView view;
    if (layout == interleaved) {
      char* both = block(2 * inter * hidden);
      view.gate = {both, 2, 2 * inter};
      view.up = {both + size_of(type), 2, 2 * inter};
    } else {
      const int64_t row = layout == rows ? hidden : 1, column = layout == rows ? 1 : inter;
      view.gate = {block(inter * hidden), row, column};
      view.up = {block(inter * hidden), row, column};
    }
    view.down = {block(inter * hidden), layout == rows ? inter : 1, layout == rows ? 1 : hidden};
    if (e % 2) view.gate_bias = view.up_bias = layer.biases.data();
    if (e % 2) view.down_bias = layer.biases.data() + inter;
    layer.experts.push_back(view);
  }
  layer.view = {layer.experts.data(), num_experts, hidden, inter, weight_format(type), {.kind = activation}};
  return layer;
}

struct Tokens {
  Block x, out;
  std::vector<int64_t> ids;
  std::vector<float> weights;
  cpu::Batch batch;
};

Tokens make_tokens(const Layer& layer, int64_t tokens, int64_t top_k, DType type, std::mt19937& random) {
  const int64_t hidden = layer.view.hidden;
  Tokens t{numbers(tokens * hidden, type, 0, random), Block(tokens * hidden * 4, 0), {}, {}, {}};
  for (int64_t i = 0; i < tokens * top_k; ++i) {
    t.ids.push_back(static_cast<int64_t>(random() % (layer.view.num_experts + 2)) - 1);
    t.weights.push_back(static_cast<float>(random() % 100) / 100.0f);
  }
  t.batch = {.x = t.x.data,
             .x_type = type,
             .x_stride = hidden,
             .out = t.out.data,
             .out_type = DType::f32,
             .out_stride = hidden,
             .routing = {.ids = t.ids.data(),
                         .ids_are_64_bit = true,
                         .ids_stride = top_k,
                         .weights = t.weights.data(),
                         .weights_type = DType::f32,
                         .weights_stride = top_k,
                         .tokens = tokens,
                         .top_k = top_k}};
  return t;
}

std::vector<float> run(cpu::MoeForward& forward, const Layer& layer, const Tokens& tokens) {
  Ignore ignore;
  forward.run(layer.view, tokens.batch, ignore);
  const auto* out = reinterpret_cast<const float*>(tokens.out.data);
  return std::vector<float>(out, out + tokens.batch.routing.tokens * layer.view.hidden);
}

int failures = 0;

void expect(bool good, const char* what) {
  if (good) return;
  ++failures;
  std::printf("wrong: %s\n", what);
}

std::vector<const KernelTable*> tables() {
  std::vector<const KernelTable*> all = {&cpu::ref_kernels()};
  if (cpu::cpu_info().avx2) all.push_back(&cpu::avx2_kernels());
  return all;
}

// Sums of up to 4 x 40 x 70 fp32 products of numbers around 1/5, in two orders: far below 1e-3 apart.
bool close(const std::vector<float>& a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i)
    if (!(std::fabs(a[i] - b[i]) < 1e-3f)) return false;
  return a.size() == b.size();
}

// Memories with as many processors as given, numbered on.
cpu::Topology made_up(std::initializer_list<int> nodes) {
  cpu::Topology topology;
  int cpu = 0;
  for (const int cpus : nodes) {
    topology.nodes.push_back({static_cast<int>(topology.nodes.size()), {}});
    for (int i = 0; i < cpus; ++i) topology.nodes.back().cpus.push_back(cpu++);
  }
  return topology;
}

std::vector<std::pair<cpu::Topology, int>> teams() {
  return {{cpu::one_node(), 1}, {cpu::one_node(), 2}, {cpu::one_node(), 3},
          {made_up({1, 1}), 2}, {made_up({1, 3}), 3}, {made_up({1, 1, 1}), 3}};
}

// Threads, rows, items and bytes: every one belongs to exactly one node.
void nodes() {
  std::mt19937 random(4);
  for (const cpu::Topology& topology :
       {cpu::one_node(), made_up({2, 2}), made_up({1, 7}), made_up({3, 1, 4})})
    for (const int threads : {1, 2, 3, 8, 19}) {
      const cpu::NodeSplit split(topology, threads);
      expect(split.team_size() == threads && split.nodes() <= threads, "threads of a split");
      for (int t = 0; t < threads; ++t) {
        const auto [begin, end] = split.threads(split.node_of(t));
        expect(begin <= t && t < end, "a thread is on a node that does not have it");
      }
      for (const int64_t rows : {1, 63, 64, 65, 500, 4096}) {
        int64_t next = 0;
        for (int n = 0; n < split.nodes(); ++n) {
          const auto [begin, end] = split.rows(rows, n);
          expect(begin == next && begin <= end && begin % cpu::kRowBlock % rows == 0, "rows of a node");
          next = end;
        }
        expect(next == rows, "rows of all nodes");
        cpu::RowItems items(split);
        const int64_t matrices = 1 + random() % 3;
        items.cut(matrices, rows, 64 * (1 + random() % 3));
        std::vector<int> times(matrices * rows);
        for (int n = 0; n < split.nodes(); ++n)
          for (int64_t i = items.of_node(n).begin; i < items.of_node(n).end; ++i) {
            const cpu::RowItems::Item item = items.at(i);
            const auto [begin, end] = split.rows(rows, n);
            expect(begin <= item.begin && item.begin < item.end && item.end <= end, "an item of a node");
            for (int64_t row = item.begin; row < item.end; ++row) ++times[item.matrix * rows + row];
          }
        expect(std::all_of(times.begin(), times.end(), [](int n) { return n == 1; }),
               "items cover rows once");
      }
    }
}

// The bytes of a quantised expert's rows, scales and zero points each belong to the node that reads them.
void placement() {
  constexpr int64_t kHidden = 320, kInter = 200;
  const cpu::NodeSplit split(made_up({1, 2}), 3);
  for (const WeightFormat format : {WeightFormat::bf16, WeightFormat::int4z_g32, WeightFormat::fp8_b128}) {
    const BlobLayout layout = blob_layout(format, kHidden, kInter, false);
    std::vector<std::byte> memory(layout.bytes + 3 * 4096);
    const ExpertView expert = expert_view(layout, memory.data());
    const std::vector<NodeBytes> bytes = bytes_of_nodes({expert}, format, kHidden, kInter, split);
    int64_t total = 0;
    for (const NodeBytes& b : bytes) {
      expect(memory.data() <= b.begin && b.begin < b.end && b.end <= memory.data() + layout.bytes,
             "bytes of a node lie in the blob");
      total += b.end - b.begin;
    }
    int64_t all = 0;
    for (const BlobMatrix& m : {layout.gate_up, layout.down})
      all += m.rows * m.row_bytes + m.scale_rows * m.scale_stride * size_of(info(format).scale) +
             (info(format).zeros ? m.rows * m.scale_stride : 0);
    expect(total == all, "all weights belong to some node");
    const auto* down = static_cast<const std::byte*>(expert.down.data);
    for (int n = 0; n < split.nodes(); ++n) {
      const auto [begin, end] = split.rows(kHidden, n);
      expect(std::any_of(bytes.begin(), bytes.end(),
                         [&, first = begin, last = end](const NodeBytes& b) {
                           return b.node == n && b.begin == down + first * layout.down.row_bytes &&
                                  b.end == down + last * layout.down.row_bytes;
                         }),
             "rows of down belong to the node that multiplies them");
    }
    const Placement placed = place(bytes, split);
    expect(placed.placed_bytes + placed.elsewhere_bytes >= total - 4096 * static_cast<int64_t>(bytes.size()),
           "every whole page was asked for");
  }
  Layer columns_layer = [] {
    std::mt19937 random(5);
    return make_layer(1, 64, 128, DType::f32, columns, Activation::silu, random);
  }();
  expect(bytes_of_nodes({columns_layer.view.experts[0]}, WeightFormat::f32, 64, 128, split).empty(),
         "rows that are not contiguous stay where they are");
}

void shapes_and_threads() {
  struct Shape {
    int64_t experts, hidden, inter, tokens, top_k;
  };
  const Shape shapes[] = {{3, 33, 1, 5, 2}, {2, 70, 40, 17, 2},  {1, 1, 19, 8, 1},    {4, 72, 40, 3, 4},
                          {2, 16, 5, 0, 1}, {2, 64, 64, 600, 1}, {2, 130, 200, 19, 2}};
  std::mt19937 random(1);
  int number = 0;
  for (const Shape& s : shapes)
    for (const Layout layout : {rows, columns, interleaved})
      for (const DType type : {DType::f32, DType::f16, DType::bf16}) {
        ++number;
        const Layer layer =
            make_layer(s.experts, s.hidden, s.inter, type, layout, Activation(number % 5), random);
        const Tokens tokens = make_tokens(layer, s.tokens, s.top_k, DType(number % 3), random);
        std::vector<float> expected;
        for (const KernelTable* table : tables()) {
          std::vector<float> alone;
          for (const auto& [topology, threads] : teams()) {
            cpu::MoeForward forward(*table, cpu::NodeSplit(topology, threads));
            const std::vector<float> out = run(forward, layer, tokens);
            if (alone.empty()) alone = out;
            expect(out == alone, "the number of threads or nodes changed the result");
          }
          if (expected.empty()) expected = alone;
          expect(close(alone, expected), table->isa);
        }
      }
}

void several_callers() {
  std::mt19937 random(2);
  const Layer layer = make_layer(3, 40, 24, DType::bf16, rows, Activation::silu, random);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller)
    callers.emplace_back([&layer, caller] {
      std::mt19937 own(10 + caller);
      cpu::MoeForward forward(*tables().back(), cpu::NodeSplit(made_up({1, 1}), 1 + caller));
      for (int i = 0; i < 20; ++i) {
        const Tokens tokens = make_tokens(layer, 1 + i, 2, DType::bf16, own);
        const std::vector<float> first = run(forward, layer, tokens);
        if (first != run(forward, layer, tokens)) std::abort();
      }
    });
  for (std::thread& c : callers) c.join();
}

void scheduler() {
  std::mt19937 random(3);
  const Layer layer = make_layer(3, 40, 24, DType::f16, columns, Activation::relu2, random);
  cpu::MoeForward forward(*tables().back(), cpu::NodeSplit(cpu::one_node(), 3));
  Scheduler scheduler;
  std::vector<std::thread> producers;
  for (int p = 0; p < 3; ++p)
    producers.emplace_back([&, p] {
      std::mt19937 own(20 + p);
      for (int i = 0; i < 10; ++i) {
        const Tokens tokens = make_tokens(layer, 9, 2, DType::f32, own);
        Ignore ignore;
        const auto job = scheduler.submit([&] { forward.run(layer.view, tokens.batch, ignore); });
        const auto bad = scheduler.submit([] { throw std::runtime_error("as planned"); });
        while (!bad->wait_for(std::chrono::milliseconds(50))) continue;
        bool thrown = false;
        try {
          bad->rethrow();
        } catch (const std::runtime_error&) {
          thrown = true;
        }
        if (!thrown || !job->wait_for(std::chrono::milliseconds(0))) std::abort();
        job->rethrow();
      }
    });
  for (std::thread& p : producers) p.join();
  std::vector<std::thread> stoppers;
  for (int s = 0; s < 3; ++s) stoppers.emplace_back([&] { scheduler.stop(); });
  for (std::thread& s : stoppers) s.join();
}

}  // namespace
}  // namespace moerun

int main(int, char** arguments) {
  moerun::cpu::set_openmp_hint(arguments[1]);
  moerun::nodes();
  moerun::placement();
  moerun::shapes_and_threads();
  moerun::several_callers();
  moerun::scheduler();
  if (moerun::cpu::openmp_runtime().rfind(arguments[1], 0) != 0) {
    std::printf("wrong: used %s\n", moerun::cpu::openmp_runtime().c_str());
    return 1;
  }
  std::printf(moerun::failures ? "failed\n" : "all good\n");
  return moerun::failures ? 1 : 0;
}
