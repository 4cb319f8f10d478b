#include "src/dma_queue/dma_queue.h"

#include <algorithm>
#include <string>

#include "src/error.h"

namespace moerun {
namespace {

constexpr size_t kMostChunksInFlight = 32;  // of any pump(): the ring's size

}  // namespace

DmaQueue::DmaQueue(const cuda::ContextPtr& context, int32_t slots, int64_t chunk_bytes)
    : chunk_bytes_(chunk_bytes), context_(context), stream_(context) {
  for (int32_t s = 0; s < slots; ++s) copies_.emplace_back(context);
  for (size_t i = 0; i < kMostChunksInFlight; ++i) chunks_.push_back({cuda::Event(context)});
  pending_.reserve(slots);
  demands_.reserve(slots);
  ended_.reserve(slots);
}

DmaQueue::State& DmaQueue::begin(const ExpertCopy& copy, Kind kind) {
  State& state = copies_[copy.slot];
  // A step that needs more experts than there are slots fills a slot several times, in the stream's order.
  if (state.kind != Kind::none && (state.kind != Kind::demand || kind != Kind::demand))
    throw InvalidState("a copy into slot " + std::to_string(copy.slot) + " is still under way");
  state.copy = copy;
  state.started = 0;
  state.timed_from = 0;
  state.timed = timed_;
  state.kind = kind;
  return state;
}

void DmaQueue::copy(State& state, int64_t bytes) {
  const ExpertCopy& c = state.copy;
  if (c.pinned) {
    stream_.copy_to_device(c.to + state.started, c.from + state.started, bytes);
  } else {
    reserve_staging();
    staging_->copy_to_device(stream_, c.to + state.started, c.from + state.started, bytes);
  }
  state.started += bytes;
}

void DmaQueue::demand(const ExpertCopy& expert) {
  if (copies_[expert.slot].kind != Kind::demand) demands_.push_back(expert.slot);
  State& state = begin(expert, Kind::demand);
  if (timed_) stream_.record(state.begin);
  copy(state, expert.bytes);
  stream_.record(state.end);
  ++stats_.demanded;
  stats_.demanded_bytes += expert.bytes;
}

void DmaQueue::prefetch(const ExpertCopy& expert) {
  begin(expert, Kind::prefetch);
  pending_.push_back(expert.slot);
  ++stats_.prefetches;
}

DmaQueue::State& DmaQueue::expect(int32_t slot, Kind kind) {
  if (copies_[slot].kind != kind)
    throw InvalidState("the copy into slot " + std::to_string(slot) +
                       " is not a prefetch that can be changed");
  return copies_[slot];
}

void DmaQueue::claim(int32_t slot) {
  expect(slot, Kind::prefetch).kind = Kind::claimed;
  std::erase(pending_, slot);
}

void DmaQueue::promote(int32_t slot) {
  State& state = expect(slot, Kind::claimed);
  state.kind = Kind::demand;
  state.timed = timed_;
  state.timed_from = state.started;
  if (timed_) stream_.record(state.begin);
  if (const int64_t left = left_bytes(slot); left > 0) {
    copy(state, left);
    stats_.prefetched_bytes += left;
  }
  stream_.record(state.end);
  demands_.push_back(slot);
  ++stats_.promoted;
}

void DmaQueue::cancel(int32_t slot) {
  expect(slot, Kind::prefetch).kind = Kind::cancelled;
  std::erase(pending_, slot);
  ++stats_.cancelled;
  end_if_over(slot);
}

void DmaQueue::start_chunk(int32_t slot) {
  State& state = copies_[slot];
  const int64_t bytes = std::min(chunk_bytes_, left_bytes(slot));
  Chunk& chunk = chunks_[next_chunk_];
  copy(state, bytes);
  stream_.record(chunk.done);
  chunk.slot = slot;
  next_chunk_ = (next_chunk_ + 1) % chunks_.size();
  ++chunks_in_flight_;
  ++state.chunks;
  stats_.prefetched_bytes += bytes;
}

// Takes the oldest chunk in flight if it is done. Whether it was.
bool DmaQueue::collect_chunk(bool wait) {
  if (chunks_in_flight_ == 0) return false;
  Chunk& oldest = chunks_[(next_chunk_ + chunks_.size() - chunks_in_flight_) % chunks_.size()];
  if (wait) oldest.done.synchronize();
  if (!oldest.done.done()) return false;
  --chunks_in_flight_;
  --copies_[oldest.slot].chunks;
  end_if_over(oldest.slot);
  return true;
}

void DmaQueue::end_if_over(int32_t slot) {
  State& state = copies_[slot];
  if (state.chunks > 0) return;
  const bool whole = state.kind == Kind::prefetch && left_bytes(slot) == 0;
  if (!whole && state.kind != Kind::cancelled) return;
  state.kind = Kind::none;
  if (whole) ++stats_.completed;
  ended_.push_back({slot, whole});
}

void DmaQueue::pump(int in_flight) {
  while (collect_chunk(false)) continue;
  const int most = std::min<int>(in_flight, static_cast<int>(chunks_.size()));
  while (chunks_in_flight_ < most && !pending_.empty()) {
    const int32_t slot = pending_.front();
    start_chunk(slot);
    if (left_bytes(slot) == 0) pending_.erase(pending_.begin());
  }
}

void DmaQueue::drain() {
  while (collect_chunk(true)) continue;
}

void DmaQueue::reset() {
  for (State& state : copies_) {
    state.kind = Kind::none;
    state.chunks = 0;
  }
  chunks_in_flight_ = 0;
  pending_.clear();
  demands_.clear();
  ended_.clear();
}

void DmaQueue::make_wait(const cuda::StreamView& stream, int32_t slot) const {
  stream.wait(copies_[slot].end);
}

void DmaQueue::settle() {
  while (collect_chunk(false)) continue;  // of promoted prefetches
  for (const int32_t slot : demands_) {
    State& state = copies_[slot];
    if (state.timed) {
      stats_.busy_seconds += state.end.elapsed_ms(state.begin) / 1000;
      stats_.timed_bytes += static_cast<double>(state.copy.bytes - state.timed_from);
    }
    state.kind = Kind::none;
  }
  demands_.clear();
}

}  // namespace moerun
