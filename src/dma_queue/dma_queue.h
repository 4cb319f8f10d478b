// Copies experts from host memory into slots of the device: demanded ones at once and whole, prefetched ones
// in chunks, of which few are in flight, so that a demand waits little and a prefetch can be cancelled.
//
// Producer and consumer: the scheduler's thread. It asks for copies, starts chunks with pump() and takes what
// has ended; the device works through the stream in the order in which copies were started. Allocates nothing
// after its creation.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "cuda/handles.h"
#include "src/dma_queue/staging.h"

namespace moerun {

struct ExpertCopy {
  int32_t slot = -1;
  cuda::DevicePtr to = 0;
  const std::byte* from = nullptr;
  int64_t bytes = 0;
  bool pinned = true;  // whether `from` is page-locked
};

struct DmaStats {
  int64_t demanded = 0, demanded_bytes = 0;
  int64_t prefetches = 0, prefetched_bytes = 0;  // begun; bytes include those of cancelled ones
  int64_t completed = 0, cancelled = 0, promoted = 0;
  double busy_seconds = 0;  // of demand copies, as the device timed them

  double bytes_per_second() const { return busy_seconds > 0 ? timed_bytes / busy_seconds : 0; }
  double timed_bytes = 0;
};

class DmaQueue {
 public:
  // A demand copy waits for at most kChunksInFlight chunks: 60 us at 50 GB/s.
  static constexpr int64_t kChunkBytes = 1 << 20;
  static constexpr int kChunksInFlight = 3;  // enough to keep the bus busy between two calls of pump()

  // Copies for slots 0 .. slots - 1, at most one at a time for each.
  DmaQueue(const cuda::ContextPtr& context, int32_t slots, int64_t chunk_bytes = kChunkBytes);

  // Whether demand copies are timed from now on; else they have no begin, and are not booked.
  void time_copies(bool timed) { timed_ = timed; }

  // The buffers for memory that is not pinned, which else are made when the first copy needs them. Throws
  // GpuOutOfMemory.
  void reserve_staging() {
    if (!staging_) staging_ = std::make_unique<Staging>(context_);
  }

  // Starts the whole copy now, before every chunk that has not started.
  void demand(const ExpertCopy& copy);
  // Queues the copy behind the other prefetches; pump() starts it.
  void prefetch(const ExpertCopy& copy);
  // A prefetch has become a demand: claim() takes it out of the queue, and promote() starts all that is left.
  void claim(int32_t slot);
  void promote(int32_t slot);
  // No further chunk of this prefetch starts. pump() reports when those in flight are over.
  void cancel(int32_t slot);

  // Starts chunks while fewer than `in_flight` are in flight, and reports what has ended.
  void pump(int in_flight = kChunksInFlight);
  // Nothing new starts; all that is in flight is awaited in this thread and reported.
  void drain();

  struct Ended {
    int32_t slot;
    bool whole;  // false: cancelled
  };
  // Prefetches that have ended since the last call: whole ones (claimed ones excepted) and cancelled ones.
  const std::vector<Ended>& ended() const { return ended_; }
  void clear_ended() { ended_.clear(); }

  // Later work of `stream` waits for the slot's demanded or promoted copy, on the device.
  void make_wait(const cuda::StreamView& stream, int32_t slot) const;
  // Books the times of demand copies; only when all of them are over.
  void settle();
  // Forgets all copies, after an error; the stream must be idle.
  void reset();

  // Whether a copy into this slot is not over, or not settled.
  bool busy(int32_t slot) const { return copies_[slot].kind != Kind::none; }
  int64_t left_bytes(int32_t slot) const { return copies_[slot].copy.bytes - copies_[slot].started; }
  bool idle() const { return chunks_in_flight_ == 0 && pending_.empty(); }

  const cuda::Stream& stream() const { return stream_; }
  const DmaStats& stats() const { return stats_; }
  // When the slot's last demand copy ran, for the timeline; after settle().
  const cuda::Event& begin_of(int32_t slot) const { return copies_[slot].begin; }
  const cuda::Event& end_of(int32_t slot) const { return copies_[slot].end; }

 private:
  enum class Kind : uint8_t { none, demand, prefetch, claimed, cancelled };
  struct State {
    explicit State(const cuda::ContextPtr& context)
        : begin(context, {.timing = true}), end(context, {.timing = true}) {}
    ExpertCopy copy;
    int64_t started = 0;     // bytes
    int64_t timed_from = 0;  // bytes started before `begin`
    bool timed = false;
    int chunks = 0;  // in flight
    Kind kind = Kind::none;
    cuda::Event begin, end;
  };
  struct Chunk {
    cuda::Event done;
    int32_t slot = -1;
  };

  State& begin(const ExpertCopy& copy, Kind kind);
  State& expect(int32_t slot, Kind kind);
  void copy(State& state, int64_t bytes);
  void start_chunk(int32_t slot);
  bool collect_chunk(bool wait);
  void end_if_over(int32_t slot);

  const int64_t chunk_bytes_;
  bool timed_ = true;
  cuda::ContextPtr context_;
  cuda::Stream stream_;
  std::unique_ptr<Staging> staging_;  // made when the first copy needs it
  std::vector<State> copies_;         // [slots]
  std::vector<Chunk> chunks_;         // a ring; those in flight are the last ones before next_chunk_
  size_t next_chunk_ = 0;
  int chunks_in_flight_ = 0;
  std::vector<int32_t> pending_;  // slots of prefetches with chunks left to start, in order
  std::vector<int32_t> demands_;  // slots, since the last settle()
  std::vector<Ended> ended_;
  DmaStats stats_;
};

}  // namespace moerun
