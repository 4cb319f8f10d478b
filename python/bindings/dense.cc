// What stands around the experts: dense layers, attention, routers, norms. Memory comes as addresses that
// python/moerun has checked; whoever calls keeps it alive.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include <array>

#include "cpu/activations.h"
#include "cpu/argmax.h"
#include "cpu/cpu_info.h"
#include "cpu/dispatch.h"
#include "cpu/team.h"
#include "python/bindings/python_engine.h"
#include "src/error.h"
#include "src/expert_store/blob_layout.h"
#include "src/expert_store/quantise.h"

namespace moerun {
namespace {

using Strides = std::pair<int64_t, int64_t>;

template <class T>
const T* at(uintptr_t address) {
  return reinterpret_cast<const T*>(address);
}

cpu::LinearView make_linear(uintptr_t weight, DType weights_type, int64_t outputs, int64_t inputs,
                            const Strides& strides, uintptr_t bias) {
  return {.matrix = {at<void>(weight), strides.first, strides.second},
          .bias = at<float>(bias),
          .outputs = outputs,
          .inputs = inputs,
          .format = weight_format(weights_type)};
}

cpu::LinearView make_quantised(const MatrixLayout& layout, uintptr_t blob, uintptr_t bias) {
  if (blob % kBlobAlignment != 0) throw InvalidArgument("blobs must begin at multiples of 256 bytes");
  return {.matrix = matrix_view(layout, at<std::byte>(blob)),
          .bias = at<float>(bias),
          .outputs = layout.matrix.rows,
          .inputs = layout.matrix.columns,
          .format = layout.format};
}

void quantise(const MatrixLayout& layout, DType from, uintptr_t weight, const Strides& strides,
              uintptr_t blob, int threads, const std::string& isa) {
  quantise_matrix({at<void>(weight), strides.first, strides.second}, from, layout,
                  reinterpret_cast<std::byte*>(blob), cpu::choose_kernels(isa),
                  cpu::Team(threads ? threads : cpu::cpu_info().usable_cores));
}

cpu::LinearOutput output(const Rows& rows) {
  return {reinterpret_cast<void*>(std::get<0>(rows)), std::get<1>(rows), std::get<2>(rows)};
}

void run_linear(PythonEngine& engine, const cpu::LinearView& layer, int64_t tokens, const Rows& x,
                const Rows& out) {
  (*engine).linear(layer, {.x = at<void>(std::get<0>(x)),
                           .x_type = std::get<1>(x),
                           .x_stride = std::get<2>(x),
                           .out = output(out),
                           .tokens = tokens});
}

cpu::AttentionView make_attention(const cpu::LinearView& query, const cpu::LinearView& key,
                                  const cpu::LinearView& value, const cpu::LinearView& attention_output,
                                  int64_t heads, int64_t kv_heads, int64_t head_dim, float scale,
                                  cpu::HeadNorm norm, uintptr_t query_norm, uintptr_t key_norm, float epsilon,
                                  float clip, uintptr_t sinks) {
  return {.query = query,
          .key = key,
          .value = value,
          .output = attention_output,
          .heads = heads,
          .kv_heads = kv_heads,
          .head_dim = head_dim,
          .scale = scale,
          .norm = norm,
          .query_norm = at<float>(query_norm),
          .key_norm = at<float>(key_norm),
          .epsilon = epsilon,
          .clip = clip,
          .sinks = at<float>(sinks)};
}

cpu::AttentionView make_latent_attention(const cpu::LinearView& query,
                                         const std::optional<cpu::LinearView>& query_up,
                                         const cpu::LinearView& latent, const cpu::LinearView& expand,
                                         const cpu::LinearView& attention_output, int64_t heads,
                                         int64_t head_dim, int64_t rank, int64_t rotated, int64_t value_dim,
                                         cpu::Pairs pairs, float scale, uintptr_t query_norm,
                                         uintptr_t latent_norm, float epsilon) {
  return {.query = query,
          .key = latent,
          .output = attention_output,
          .heads = heads,
          .kv_heads = 1,
          .head_dim = head_dim,
          .scale = scale,
          .query_norm = at<float>(query_norm),
          .key_norm = at<float>(latent_norm),
          .epsilon = epsilon,
          .latent = {.rank = rank,
                     .rotated = rotated,
                     .value_dim = value_dim,
                     .pairs = pairs,
                     .query_up = query_up.value_or(cpu::LinearView{}),
                     .expand = expand}};
}

// added: the type of a mask whose elements are added to scores
cpu::KeyMask key_mask(uintptr_t mask, const Strides& strides, std::optional<DType> added) {
  return {.data = at<void>(mask),
          .sequence_stride = strides.first,
          .token_stride = strides.second,
          .kind = added ? cpu::MaskKind::added : cpu::MaskKind::seen,
          .type = added.value_or(DType::f32)};
}

cpu::AttentionBatch attention_batch(int64_t sequences, int64_t tokens, const Rows& x, const Rows& out,
                                    uintptr_t cos, uintptr_t sin, int64_t rotated, uintptr_t keys,
                                    uintptr_t values, DType cache_type, const Strides& cache_strides,
                                    int64_t past, uintptr_t mask, const Strides& mask_strides,
                                    std::optional<DType> added) {
  return {.sequences = sequences,
          .tokens = tokens,
          .x = at<void>(std::get<0>(x)),
          .x_type = std::get<1>(x),
          .x_stride = std::get<2>(x),
          .out = output(out),
          .rotation = {at<float>(cos), at<float>(sin), rotated},
          .cache = {.keys = reinterpret_cast<void*>(keys),
                    .values = reinterpret_cast<void*>(values),
                    .type = cache_type,
                    .sequence_stride = cache_strides.first,
                    .head_stride = cache_strides.second,
                    .past = past},
          .mask = key_mask(mask, mask_strides, added)};
}

cpu::DecoderView make_decoder(uintptr_t attention_norm, float attention_epsilon,
                              const cpu::AttentionView& attention, uintptr_t expert_norm,
                              float expert_epsilon, const cpu::RouterView& router) {
  const int64_t hidden = attention.query.inputs;
  return {.attention_norm = {at<float>(attention_norm), hidden, attention_epsilon},
          .attention = attention,
          .expert_norm = {at<float>(expert_norm), hidden, expert_epsilon},
          .router = router};
}

// norm: (weight, epsilon)
std::shared_ptr<DecoderStack> make_stack(std::vector<std::shared_ptr<Layer>> experts,
                                         std::vector<cpu::DecoderView> layers,
                                         const std::optional<std::pair<uintptr_t, float>>& norm,
                                         const std::optional<cpu::LinearView>& head) {
  cpu::ModelView model{.layers = std::move(layers)};
  if (norm && !model.layers.empty())
    model.norm = {at<float>(norm->first), model.layers[0].attention_norm.width, norm->second};
  if (head) model.head = *head;
  return std::make_shared<DecoderStack>(std::move(experts), std::move(model));
}

cpu::KeyValues make_key_values(uintptr_t keys, uintptr_t values, DType type, const Strides& strides) {
  return {.keys = reinterpret_cast<void*>(keys),
          .values = reinterpret_cast<void*>(values),
          .type = type,
          .sequence_stride = strides.first,
          .head_stride = strides.second};
}

struct Caches {
  std::vector<cpu::KeyValues> layers;
};

void run_decode(PythonEngine& engine, const DecoderStack& stack, int64_t sequences, int64_t tokens,
                const Rows& x, const Rows& out, int64_t kept, uintptr_t cos, uintptr_t sin, int64_t rotated,
                const Caches& caches, int64_t past, uintptr_t mask, const Strides& mask_strides,
                std::optional<DType> added) {
  cpu::ModelBatch batch{.shared = {.sequences = sequences,
                                   .tokens = tokens,
                                   .x = at<void>(std::get<0>(x)),
                                   .x_type = std::get<1>(x),
                                   .x_stride = std::get<2>(x),
                                   .rotation = {at<float>(cos), at<float>(sin), rotated},
                                   .mask = key_mask(mask, mask_strides, added)},
                        .caches = caches.layers,
                        .kept = kept,
                        .out = output(out)};
  for (cpu::KeyValues& cache : batch.caches) cache.past = past;
  (*engine).decode(stack, batch);
}

// Where a model keeps what a step of one token begins with: rows of [tokens, hidden] and [positions, width].
struct TokenTables {
  uintptr_t embedding;
  DType type;
  uintptr_t cos, sin;
  int64_t width;
};

// One token of one sequence at position `past`; logits [outputs] of the embedding's type. Returns the index
// of the largest.
int64_t run_next(PythonEngine& engine, const DecoderStack& stack, const TokenTables& tables, int64_t token,
                 const Caches& caches, int64_t past, uintptr_t logits) {
  const int64_t hidden = stack.view().layers[0].attention_norm.width, outputs = stack.view().head.outputs;
  cpu::ModelBatch batch{.shared = {.x = cpu::offset(at<void>(tables.embedding), token * hidden, tables.type),
                                   .x_type = tables.type,
                                   .x_stride = hidden,
                                   .rotation = {at<float>(tables.cos) + past * tables.width,
                                                at<float>(tables.sin) + past * tables.width, tables.width}},
                        .caches = caches.layers,
                        .out = {reinterpret_cast<void*>(logits), tables.type, outputs}};
  for (cpu::KeyValues& cache : batch.caches) cache.past = past;
  (*engine).decode(stack, batch);
  return cpu::argmax(at<void>(logits), tables.type, outputs);
}

cpu::RouterView make_router(const cpu::LinearView& gate, int64_t top_k, cpu::Scoring scoring,
                            bool renormalise, float scale, uintptr_t correction, int64_t groups,
                            int64_t top_groups) {
  if (top_k < 1 || top_groups < 1 || groups < top_groups || gate.outputs % groups != 0 ||
      top_k > gate.outputs / groups * top_groups)
    throw InvalidArgument("a router over " + std::to_string(gate.outputs) + " experts in " +
                          std::to_string(groups) + " groups cannot choose " + std::to_string(top_k) +
                          " from " + std::to_string(top_groups) + " of them");
  return {.gate = gate,
          .top_k = top_k,
          .scoring = scoring,
          .renormalise = renormalise,
          .scale = scale,
          .correction = at<float>(correction),
          .groups = groups,
          .top_groups = top_groups};
}

void run_router(PythonEngine& engine, const cpu::RouterView& layer, int64_t tokens, const Rows& x,
                uintptr_t logits, DType logits_type, uintptr_t weights, uintptr_t ids) {
  (*engine).route(layer, {.tokens = tokens,
                          .x = at<void>(std::get<0>(x)),
                          .x_type = std::get<1>(x),
                          .x_stride = std::get<2>(x),
                          .logits = reinterpret_cast<void*>(logits),
                          .logits_type = logits_type,
                          .weights = reinterpret_cast<float*>(weights),
                          .ids = reinterpret_cast<int64_t*>(ids)});
}

// (address, elements from sequence to sequence, head to head, token to token)
using Heads = std::tuple<uintptr_t, int64_t, int64_t, int64_t>;

cpu::HeadsView heads_view(const Heads& t) {
  return {reinterpret_cast<void*>(std::get<0>(t)), std::get<1>(t), std::get<2>(t), std::get<3>(t)};
}

// sizes: sequences, heads, kv_heads, tokens, keys, head_dim, value_dim
void run_prompt(PythonEngine& engine, const std::array<int64_t, 7>& sizes, DType type, const Heads& queries,
                const Heads& keys, const Heads& values, const Heads& out, float scale, uintptr_t mask,
                const Strides& mask_strides, std::optional<DType> added, uintptr_t sinks) {
  const auto [sequences, heads, kv_heads, tokens, keys_count, head_dim, value_dim] = sizes;
  (*engine).attend_prompt({.sequences = sequences,
                           .heads = heads,
                           .kv_heads = kv_heads,
                           .tokens = tokens,
                           .keys_count = keys_count,
                           .head_dim = head_dim,
                           .value_dim = value_dim,
                           .type = type,
                           .queries = heads_view(queries),
                           .keys = heads_view(keys),
                           .values = heads_view(values),
                           .out = heads_view(out),
                           .scale = scale,
                           .mask = at<void>(mask),
                           .mask_sequence_stride = mask_strides.first,
                           .mask_token_stride = mask_strides.second,
                           .mask_adds = added.has_value(),
                           .mask_type = added.value_or(DType::f32),
                           .sinks = at<float>(sinks)});
}

void run_norm(PythonEngine& engine, uintptr_t weight, int64_t width, float epsilon, int64_t rows,
              const Rows& x, const Rows& out) {
  (*engine).rms_norm({at<float>(weight), width, epsilon}, {.x = at<void>(std::get<0>(x)),
                                                           .x_type = std::get<1>(x),
                                                           .x_stride = std::get<2>(x),
                                                           .out = output(out),
                                                           .rows = rows});
}

}  // namespace

void bind_dense(py::module_& m, py::class_<PythonEngine>& engine) {
  py::class_<MatrixLayout>(m, "MatrixLayout", "Where everything lies in a quantised matrix.")
      .def(py::init(&matrix_layout), py::arg("format"), py::arg("rows"), py::arg("columns"))
      .def_readonly("format", &MatrixLayout::format)
      .def_readonly("matrix", &MatrixLayout::matrix)
      .def_readonly("bytes", &MatrixLayout::bytes);
  m.def("quantise_matrix", quantise, py::arg("layout"), py::arg("dtype"), py::arg("weight"),
        py::arg("strides"), py::arg("blob"), py::arg("threads") = 0, py::arg("isa") = "",
        py::call_guard<py::gil_scoped_release>(),
        "Writes the matrix at `weight` into the blob. threads 0: all usable cores.");

  py::class_<cpu::LinearView>(m, "LinearView")
      .def(py::init(&make_linear), py::arg("weight"), py::arg("weights_type"), py::arg("outputs"),
           py::arg("inputs"), py::arg("strides"), py::arg("bias"))
      .def(py::init(&make_quantised), py::arg("layout"), py::arg("blob"), py::arg("bias"));
  py::enum_<cpu::HeadNorm>(m, "HeadNorm")
      .value("none", cpu::HeadNorm::none)
      .value("head", cpu::HeadNorm::head)
      .value("row", cpu::HeadNorm::row);
  py::enum_<cpu::Pairs>(m, "Pairs")
      .value("halves", cpu::Pairs::halves)
      .value("neighbours", cpu::Pairs::neighbours)
      .value("neighbours_to_halves", cpu::Pairs::neighbours_to_halves);
  py::class_<cpu::AttentionView>(m, "AttentionView")
      .def(py::init(&make_attention), py::arg("query"), py::arg("key"), py::arg("value"), py::arg("output"),
           py::arg("heads"), py::arg("kv_heads"), py::arg("head_dim"), py::arg("scale"), py::arg("norm"),
           py::arg("query_norm"), py::arg("key_norm"), py::arg("epsilon"), py::arg("clip"), py::arg("sinks"))
      .def(py::init(&make_latent_attention), py::arg("query"), py::arg("query_up"), py::arg("latent"),
           py::arg("expand"), py::arg("output"), py::arg("heads"), py::arg("head_dim"), py::arg("rank"),
           py::arg("rotated"), py::arg("value_dim"), py::arg("pairs"), py::arg("scale"),
           py::arg("query_norm"), py::arg("latent_norm"), py::arg("epsilon"));
  py::class_<cpu::AttentionBatch>(m, "AttentionBatch")
      .def(py::init(&attention_batch), py::arg("sequences"), py::arg("tokens"), py::arg("x"), py::arg("out"),
           py::arg("cos"), py::arg("sin"), py::arg("rotated"), py::arg("keys"), py::arg("values"),
           py::arg("cache_type"), py::arg("cache_strides"), py::arg("past"), py::arg("mask"),
           py::arg("mask_strides"), py::arg("added") = py::none());
  py::enum_<cpu::Scoring>(m, "Scoring")
      .value("softmax", cpu::Scoring::softmax)
      .value("sigmoid", cpu::Scoring::sigmoid);
  py::class_<cpu::RouterView>(m, "RouterView")
      .def(py::init(&make_router), py::arg("gate"), py::arg("top_k"), py::arg("scoring"),
           py::arg("renormalise"), py::arg("scale"), py::arg("correction"), py::arg("groups"),
           py::arg("top_groups"));
  py::class_<cpu::DecoderView>(m, "DecoderView")
      .def(py::init(&make_decoder), py::arg("attention_norm"), py::arg("attention_epsilon"),
           py::arg("attention"), py::arg("expert_norm"), py::arg("expert_epsilon"), py::arg("router"));
  py::class_<cpu::KeyValues>(m, "KeyValues")
      .def(py::init(&make_key_values), py::arg("keys"), py::arg("values"), py::arg("type"),
           py::arg("strides"));
  py::class_<Caches>(m, "Caches").def(py::init<std::vector<cpu::KeyValues>>(), py::arg("layers"));
  py::class_<TokenTables>(m, "TokenTables")
      .def(py::init<uintptr_t, DType, uintptr_t, uintptr_t, int64_t>(), py::arg("embedding"), py::arg("type"),
           py::arg("cos"), py::arg("sin"), py::arg("width"));
  py::class_<DecoderStack, std::shared_ptr<DecoderStack>>(m, "DecoderStack")
      .def(py::init(&make_stack), py::arg("experts"), py::arg("layers"), py::arg("norm"), py::arg("head"));

  const auto release = py::call_guard<py::gil_scoped_release>();
  engine.def("linear", run_linear, py::arg("layer"), py::arg("tokens"), py::arg("x"), py::arg("out"), release)
      .def(
          "attention",
          [](PythonEngine& e, const cpu::AttentionView& layer, const cpu::AttentionBatch& batch) {
            (*e).attention(layer, batch);
          },
          py::arg("layer"), py::arg("batch"), release)
      .def("attend_prompt", run_prompt, py::arg("sizes"), py::arg("type"), py::arg("queries"),
           py::arg("keys"), py::arg("values"), py::arg("out"), py::arg("scale"), py::arg("mask"),
           py::arg("mask_strides"), py::arg("added"), py::arg("sinks"), release)
      .def("decode_next", run_next, py::arg("stack"), py::arg("tables"), py::arg("token"), py::arg("caches"),
           py::arg("past"), py::arg("logits"), release)
      .def("decode", run_decode, py::arg("stack"), py::arg("sequences"), py::arg("tokens"), py::arg("x"),
           py::arg("out"), py::arg("kept"), py::arg("cos"), py::arg("sin"), py::arg("rotated"),
           py::arg("caches"), py::arg("past"), py::arg("mask"), py::arg("mask_strides"),
           py::arg("added") = py::none(), release)
      .def("route", run_router, py::arg("layer"), py::arg("tokens"), py::arg("x"), py::arg("logits"),
           py::arg("logits_type"), py::arg("weights"), py::arg("ids"), release)
      .def("rms_norm", run_norm, py::arg("weight"), py::arg("width"), py::arg("epsilon"), py::arg("rows"),
           py::arg("x"), py::arg("out"), release);
}

}  // namespace moerun
