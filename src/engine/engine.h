// Owns everything: layers, the CPU team with its workspace, the scheduler's thread, statistics and the
// timeline. python/bindings calls it; it calls cpu/ for the work. One batch computes at a time, on
// cpu_threads threads of which the calling one (forward) or the scheduler's (submit) is the first.
#pragma once
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "cpu/attention_forward.h"
#include "cpu/linear_forward.h"
#include "cpu/model_forward.h"
#include "cpu/moe_forward.h"
#include "cpu/norm_forward.h"
#include "cpu/prompt_forward.h"
#include "cpu/router_forward.h"
#include "src/engine/decoder_stack.h"
#include "src/engine/gpu_store.h"
#include "src/engine/layer.h"
#include "src/expert_store/node_placement.h"
#include "src/scheduler/hybrid_forward.h"
#include "src/scheduler/scheduler.h"
#include "src/scheduler/stream_gate.h"
#include "src/trace/trace.h"

namespace moerun {

struct EngineOptions {
  int cpu_threads = 0;  // 0: all usable cores
  std::string isa;      // empty: the best, or MOERUN_ISA
  std::optional<GpuOptions> gpu;
};

struct EngineStats {
  int cpu_threads = 0;
  std::string isa;
  int64_t workspace_bytes = 0;
  double dense_seconds = 0;  // spent in what stands around the experts
  int numa_nodes = 1;        // that the threads run on
  Placement placement;       // of experts, where there are several nodes
  std::vector<LayerStats> layers;
  std::optional<HybridStats> gpu;
};

class Engine {
 public:
  // With options.gpu, throws GpuUnavailable if there is none, and InvalidArgument if the budget does not fit.
  explicit Engine(const EngineOptions& options);
  ~Engine();

  // With a GPU, the experts are copied into page-locked memory, and `owner` is let go.
  std::shared_ptr<Layer> add_layer(const LayerShape& shape, std::vector<ExpertView> experts,
                                   std::shared_ptr<void> owner);

  // Kernels for the GPU, loaded once for all layers of a shape, and given to a layer.
  std::shared_ptr<const cuda::ExpertKernels> load_kernels(const cuda::CompiledKernels& compiled);
  void set_kernels(const Layer& layer, std::shared_ptr<const cuda::ExpertKernels> kernels);
  bool has_gpu() const { return gpu_options_.has_value(); }
  cuda::ContextPtr gpu() const;  // throws InvalidState without a GPU; does not wait for a batch
  // Why the experts of some layer could not be page-locked; empty if all are.
  std::string why_not_pinned() const;

  // Calibration: times the layer's experts (src/scheduler/timing.h) on the threads that run batches. Without
  // a GPU the last three throw InvalidState; time_gpu needs the layer's kernels for x of x_type.
  std::vector<policy::ComputePoint> time_cpu(const Layer& layer, DType x_type);
  std::vector<policy::ComputePoint> time_gpu(const Layer& layer, DType x_type);
  std::vector<policy::CopyPoint> time_copies(const Layer& layer);
  void set_cost(const Layer& layer, const policy::CostModel& cost);
  policy::CostModel cost(const Layer& layer) const;

  // Warm start (HybridForward::warm_start, ::start). Throw InvalidState without a GPU.
  void warm_start(const Layer& layer, std::span<const double> shares);
  void start();

  // Computes the batch before it returns. Throws InvalidState if the engine is closed or came through a fork.
  void forward(Layer& layer, const cpu::Batch& batch);

  // Returns at once; the memory behind `batch` must live until the job is done.
  JobRef submit(std::shared_ptr<Layer> layer, const cpu::Batch& batch);
  // The same for arrays on the engine's GPU, behind what a stream of the caller's has been given, and before
  // what it is given afterwards (StreamGate): if StreamOrder::stream_waits(), now, and the job is done when
  // the device is; else the job is done when all work is enqueued, and then StreamOrder::join makes the
  // stream wait. Rows must lie behind each other, and out, of x's type, may overlap nothing. Throws
  // InvalidState without a GPU and for a stream that is being captured, GpuError.
  JobRef submit(std::shared_ptr<Layer> layer, const cpu::Batch& batch, uintptr_t stream);

  // Waits until everything that was submitted is done. Throws what a batch on the device threw that nobody
  // has been told of; so do forward and submit.
  void synchronize();

  // What is predicted of the layer's next batch: the experts that each token will probably choose, the most
  // probable first, ids [tokens, k]; made `distance` layers before, or when the last one ran (0). Ids outside
  // of 0 .. E - 1 are skipped. Queued behind what was submitted. Does nothing without a GPU. A failing driver
  // empties the cache, and if it stays so, the next batch says it.
  void hint(std::shared_ptr<Layer> layer, std::span<const int64_t> ids, int64_t k, int32_t distance);

  // What stands around the experts, on the engine's threads; computes before it returns. Throws as forward
  // does.
  void linear(const cpu::LinearView& layer, const cpu::LinearBatch& batch);
  void attention(const cpu::AttentionView& layer, const cpu::AttentionBatch& batch);
  void attend_prompt(const cpu::PromptBatch& batch);
  void route(const cpu::RouterView& layer, const cpu::RouterBatch& batch);
  void rms_norm(const cpu::NormView& norm, const cpu::NormBatch& batch);

  // While kept, experts that are in the GPU's cache stay there, unless a batch cannot do without their slots.
  // Queued behind what was submitted. Does nothing without a GPU.
  void keep(std::shared_ptr<Layer> layer, std::vector<int32_t> experts, bool kept);

  // Decoder layers whose experts are this engine's. Throws InvalidState in an engine with a GPU, and
  // InvalidArgument if there is not a cache for every layer.
  void decode(const DecoderStack& stack, const cpu::ModelBatch& batch);

  EngineStats stats() const;
  void write_trace(const std::string& path) const;

  // Finishes submitted work and gives the GPU's memory back; later calls throw InvalidState. Idempotent.
  void close();
  bool closed() const { return closed_; }

 private:
  void check_process()
      const;  // throws InvalidState in the child of a fork, where any lock may be held by nobody
  void check_usable() const;
  void compute(Layer& layer, const cpu::Batch& batch);
  void compute_on_device(Layer& layer, const cpu::Batch& batch, Job& job);
  void forget_reserved();
  template <class Run>
  void book(Layer& layer, Run&& run);
  bool go_on_beside(const cuda::StreamView& stream);
  template <class Work>
  void submit_aside(Work&& work);
  template <class Work>
  void run_here(Work&& work);
  template <class Work>
  void run_on_scheduler(Work&& work);
  template <class Work>
  void run_dense(const char* name, int64_t tokens, Work&& work);
  template <class Work>
  void run_where_batches_run(Work&& work);
  HybridForward& hybrid() const;  // while mutex_ is held
  std::shared_ptr<StreamGate> gate() const;

  const int fork_generation_;
  const cpu::KernelTable& kernels_;
  std::atomic<bool> closed_{false};
  mutable std::mutex mutex_;  // guards all below but the scheduler and the trace, which guard themselves
  cpu::MoeForward forward_;
  cpu::LinearForward linear_;
  cpu::AttentionForward attention_;
  cpu::PromptForward prompt_;
  cpu::RouterForward router_;
  cpu::DecoderForward decoder_;
  cpu::ModelForward model_;
  double dense_seconds_ = 0;
  Placement placement_;
  std::vector<std::shared_ptr<Layer>> layers_;
  Trace trace_;
  const std::optional<GpuOptions> gpu_options_;
  std::unique_ptr<HybridForward> hybrid_;  // null without a GPU, and once closed
  mutable std::mutex context_mutex_;       // guards what is asked for while a batch runs:
  cuda::ContextPtr context_;               // null without a GPU, and once closed
  std::shared_ptr<StreamGate> gate_;       // the same; guards itself
  std::optional<HybridStats> last_gpu_stats_;
  int64_t times_caches_made_ = 0;
  std::string why_not_pinned_;
  std::unique_ptr<Scheduler> scheduler_;
};

}  // namespace moerun
