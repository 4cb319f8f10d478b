// The table of CPU kernels: one row per instruction set, filled by cpu/<isa>/kernels.cc, chosen by
// dispatch.cc. Called by moe_forward.cc, which decides who works on what; a kernel computes one work item on
// one thread.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu/quantise.h"
#include "src/types.h"

namespace moerun::cpu {

// How many tokens are multiplied at a time, which depends on the machine's caches (see blocking() in
// cpu_info.h).
struct Blocking {
  int64_t panel_bytes = 256 << 10;  // that the packed activations of a block may take
  int64_t element_bytes = 4;        // of activations
};

// Work items of both phases begin at a multiple of it: a block of K that shares a scale of int8 activations
// in the down phase is the result of one item of the gate-up phase.
constexpr int64_t kRowBlock = 64;
constexpr int64_t kMostLanes = 16;  // tokens in a vector of any instruction set
constexpr int64_t kLeastTokenBlock = 64, kMostTokenBlock = 192;

constexpr int64_t padded_k(int64_t k) {
  return (k + 63) / 64 * 64;
}

// `tokens` tokens are multiplied in blocks of as even a size as whole vectors allow.
constexpr int64_t token_block(const Blocking& b, int64_t k, int64_t tokens) {
  const int64_t fitting = b.panel_bytes / (padded_k(k) * b.element_bytes);
  const int64_t most = fitting < kLeastTokenBlock  ? kLeastTokenBlock
                       : fitting > kMostTokenBlock ? kMostTokenBlock
                                                   : fitting / kMostLanes * kMostLanes;
  const int64_t blocks = (tokens + most - 1) / most;
  return blocks ? ((tokens + blocks - 1) / blocks + kMostLanes - 1) / kMostLanes * kMostLanes : kMostLanes;
}

// Memory of one thread, at least scratch_bytes long and 64-byte aligned.
struct Scratch {
  void* data = nullptr;
};

// Phase 1 of a layer, for rows [begin, end) of one expert:
//   h[i, n] = act(gate[n] . x[rows[i]] + gate_bias[n]) * (up[n] . x[rows[i]] + up_bias[n])
// The form of h is the kernels' own affair; gate_up and down of one ExpertKernels agree on it.
struct GateUpArgs {
  const ExpertView* expert;
  int64_t hidden, inter;  // K and N
  int64_t begin, end;     // rows of gate and up = columns of h; whole row blocks, the last may be short
  const void* x;          // [tokens, x_stride] activation type; zero in [hidden, x_stride)
  int64_t x_stride;       // elements
  const int32_t* rows;    // [count] row of x of each pair
  int64_t count;
  void* h;  // memory for [count rounded up to kMostLanes, h_stride] of activation type
  int64_t h_stride;
  ActivationSpec activation;
  Blocking blocking;
  Scratch scratch;
};

// Phase 2, for rows [begin, end) of one expert's down projection:
//   y[rows[i], n] += weights[i] * (down[n] . h[i] + down_bias[n])
struct DownArgs {
  const ExpertView* expert;
  int64_t hidden, inter;  // N and K
  int64_t begin, end;     // rows of down = columns of y
  const void* h;          // what gate_up left
  int64_t h_stride;
  const int32_t* rows;   // [count] row of y of each pair
  const float* weights;  // [count] routing weights
  int64_t count;
  float* y;  // [tokens, y_stride]
  int64_t y_stride;
  const ExpertView* next;  // whose rows come after these, to prefetch; or null
  Blocking blocking;
  Scratch scratch;
};

// A dense linear layer, for rows [begin, end): out[i, n] = matrix[n] . x[i] + bias[n]
struct LinearArgs {
  const MatrixView* matrix;
  const float* bias;   // [rows] or null
  int64_t inputs;      // K
  int64_t begin, end;  // rows of the matrix = columns of out
  const void* x;       // [count, x_stride] activation type; zero in [inputs, x_stride)
  int64_t x_stride;    // elements
  int64_t count;
  void* out;  // [count, out_stride] of out_type
  DType out_type;
  int64_t out_stride;
  Blocking blocking;
  Scratch scratch;
};

// Attention of the query heads that share a head of keys and values, over keys [0, count):
//   s[r][t] = queries[r] . (keys[t], more_keys[t]) + bias[r / rows_per_bias][t]
//   most[r] = max_t s[r][t]     total[r] = sum_t exp(s[r][t] - most[r])
//   out[r]  = sum_t exp(s[r][t] - most[r]) values[t]
// so that parts of a long sequence can be joined, and divided by their total, later.
struct AttendArgs {
  // [rows, query_stride], scaled: head_dim elements, zeros up to a multiple of kMostLanes, then likewise
  // those that meet more_keys
  const float* queries;
  int64_t rows, head_dim;
  int64_t query_stride;  // a multiple of kMostLanes
  const void* keys;      // [count, head_dim] of `type`
  const void* values;    // likewise
  DType type;
  int64_t key_stride, value_stride;  // elements
  int64_t count;                     // at least 1
  const float* bias;                 // [rows / rows_per_bias, bias_stride], finite; or null
  int64_t rows_per_bias, bias_stride;
  float* out;                       // [rows, head_dim]
  float* most;                      // [rows]
  float* total;                     // [rows]
  float* scratch;                   // [rows, kAttendKeys], and [kAttendRest] more with more_keys
  const void* more_keys = nullptr;  // [count, more_dim] of `type`: the rest of every key, or null
  int64_t more_dim = 0, more_stride = 0;
};
constexpr int64_t kAttendKeys = 256;  // that are worked on at a time: their values stay in L2
constexpr int64_t kAttendRest = 4 * kAttendKeys;

// out[r] = sum_t weights[r][t] matrix[t]
struct SumRowsArgs {
  const float* weights;  // [rows, weight_stride]
  int64_t weight_stride, rows;
  const void* matrix;  // [count, width] of `type`
  DType type;
  int64_t matrix_stride, count, width;
  float* out;  // [rows, out_stride]
  int64_t out_stride;
};

// Attention of many queries of the heads that share a head of keys and values. Row r of a block is the query
// of token r / group and head r % group:
//   out[r] = sum_t softmax_t(scale * queries[r] . keys[t] + mask[token][t]) values[t]
// where a sink is a score without a value. Without a mask, token i sees keys 0 .. past + i.
struct PromptArgs {
  const void* queries;
  int64_t query_stride, query_head_stride;  // elements from token to token, and from head to head
  int64_t group;
  int64_t begin, end;  // rows, at most kPromptRows
  const void* keys;    // [keys_count, head_dim]
  const void* values;  // [keys_count, value_dim]
  DType type;          // of queries, keys, values and out
  int64_t key_stride, value_stride;
  int64_t keys_count, past;
  int64_t head_dim, value_dim;
  float scale;
  const void*
      mask;  // [tokens, keys_count] bytes that are not 0 where a key is seen, or what is added; or null
  int64_t mask_stride;
  bool mask_adds;
  DType mask_type;     // of what is added
  const float* sinks;  // [group] or null
  void* out;
  int64_t out_stride, out_head_stride;
  Scratch scratch;  // prompt_scratch_bytes(head_dim, value_dim)
};
constexpr int64_t kPromptRows = 192, kPromptKeys = 192;  // heuristic: 0.5 MB of L2 at 128 wide heads
constexpr float kPromptUnseen = -8e37f;                  // added to the score of a key that is not seen

// y = x / sqrt(mean(x^2) + epsilon) * weight, for one row of `width`.
struct NormArgs {
  const void* x;
  DType x_type;
  const float* weight;
  float epsilon;
  int64_t width;
  void* y;  // may be x
  DType y_type;
};

// What stands around the experts besides matrices.
struct DenseKernels {
  void (*attend)(const AttendArgs&) = nullptr;
  void (*rms_norm)(const NormArgs&) = nullptr;
  void (*attend_prompt)(const PromptArgs&) = nullptr;
  void (*sum_rows)(const SumRowsArgs&) = nullptr;
};

// What the multiply-adds of a kernel multiply: the rate at which a machine can do them differs.
enum class DotType : uint8_t { f32 = 0, bf16 = 1, int8 = 2 };
constexpr int kDotTypes = 3;

constexpr const char* name_of(DotType t) {
  return t == DotType::f32 ? "fp32" : t == DotType::bf16 ? "bf16" : "int8";
}
// Elements of K in 32 bits.
constexpr int elements_in_word(DotType t) {
  return t == DotType::f32 ? 1 : t == DotType::bf16 ? 2 : 4;
}

// The kernels for one pair of weight format and activation type.
struct ExpertKernels {
  void (*gate_up)(const GateUpArgs&) = nullptr;
  void (*down)(const DownArgs&) = nullptr;
  void (*linear)(const LinearArgs&) = nullptr;
  DotType dot = DotType::f32;  // of many tokens
};

// What the machine can do at most, measured by doctor and the benches.
struct LimitKernels {
  // Reads n bytes (a multiple of 256) once, in order; the result depends on all of them.
  uint64_t (*read)(const void* data, size_t n) = nullptr;
  // By DotType, null where no kernel of the row multiplies such numbers: runs `rounds` rounds of independent
  // multiply-adds in registers; returns the operations (2 per multiply-add).
  double (*dot[kDotTypes])(int64_t rounds, float* sink) = {};
};

struct KernelTable {
  const char* isa = nullptr;
  // By WeightFormat. Null in bf16_activations where fp32 ones serve as well; which of the two serves a batch,
  // see arithmetic.h.
  ExpertKernels f32_activations[kWeightFormats];
  ExpertKernels bf16_activations[kWeightFormats];
  DenseKernels dense;
  // to[i] = from[i], i < n, rounding to nearest even. `to_bf16` and `from_f32` serve activations and outputs.
  void (*convert)(const void* from, DType from_type, void* to, DType to_type, int64_t n) = nullptr;
  // Same bytes in every row (see cpu/kernels/quantise_inl.h).
  QuantiseResult (*quantise)(const QuantiseArgs&) = nullptr;
  LimitKernels limits;
};

QuantiseResult ref_quantise(const QuantiseArgs& args);
QuantiseResult avx2_quantise(const QuantiseArgs& args);
QuantiseResult avx512_quantise(const QuantiseArgs& args);

const KernelTable& ref_kernels();
const KernelTable& avx2_kernels();
const KernelTable& avx_vnni_kernels();  // if the compiler knows it, see CMakeLists.txt
const KernelTable& avx512_kernels();
const KernelTable& avx512_vnni_kernels();
const KernelTable& avx512_bf16_kernels();
const KernelTable& amx_kernels();
const KernelTable& amx_emulated_kernels();  // for tests

// The parts of Scratch (see Workspace in cpu/kernels/expert_inl.h), for rows of at most k elements.
constexpr int64_t panel_bytes(const Blocking& b, int64_t k) {
  const int64_t least = kLeastTokenBlock * padded_k(k) * b.element_bytes;
  return least > b.panel_bytes ? least : (b.panel_bytes + 63) / 64 * 64;
}
constexpr int64_t stage_bytes(const Blocking& b, int64_t k) {
  return 32 * (padded_k(k) * b.element_bytes + 64);  // group_rows() of any Dot
}
constexpr int64_t arranged_bytes(int64_t k) {
  return int64_t{8} * 512 * ((k + 127) / 128);  // kMostRowTokens, 128 elements in at most 512 bytes
}
constexpr int64_t kSumsBytes =
    2 * kRowBlock * kMostTokenBlock * int64_t{sizeof(float)};  // of a run of rows of gate and up
constexpr int64_t scratch_bytes(const Blocking& b, int64_t k) {
  return 2 * panel_bytes(b, k) + stage_bytes(b, k) + arranged_bytes(k) + kSumsBytes;
}

constexpr int64_t prompt_scratch_bytes(int64_t head_dim, int64_t value_dim) {
  const int64_t floats = kPromptRows * (padded_k(head_dim) + 2 * kPromptKeys + 2 * value_dim + 4);
  const int64_t staged = head_dim > kPromptKeys ? head_dim : kPromptKeys;
  return floats * int64_t{sizeof(float)} + int64_t{9} * 64 + stage_bytes({.element_bytes = 4}, staged);
}

}  // namespace moerun::cpu
