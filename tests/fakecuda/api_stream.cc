// Streams, events, and values in memory that streams wait for.
#include "tests/fakecuda/state.h"

namespace fakecuda {

FAKECUDA_API Result cuStreamCreateWithPriority(StreamHandle* handle, unsigned, int) {
  FAKECUDA_ENTER_IN_CONTEXT(StreamCreate);
  State& state = State::get();
  auto stream = state.make_stream(context_stack().back());
  if (!stream) return kOutOfMemory;
  *handle = state.streams.add(std::move(stream));
  return kSuccess;
}

FAKECUDA_API Result cuStreamDestroy_v2(StreamHandle handle) {
  State& state = State::get();
  const Result injected = state.faults.enter(Call::StreamDestroy);
  auto stream = state.streams.remove(handle);
  if (!stream) return destroyed_handle(Call::StreamDestroy);
  state.retire(std::move(stream));
  return injected;
}

FAKECUDA_API Result cuStreamSynchronize(StreamHandle handle) {
  FAKECUDA_ENTER_IN_CONTEXT(StreamSynchronize);
  State& state = State::get();
  const auto stream = state.find_stream(handle, Call::StreamSynchronize);
  if (!stream) return kInvalidHandle;
  stream->synchronize();
  state.host.merge(stream->clock());
  return state.faults.sticky();
}

FAKECUDA_API Result cuStreamQuery(StreamHandle handle) {
  FAKECUDA_ENTER_IN_CONTEXT(StreamQuery);
  State& state = State::get();
  const auto stream = state.find_stream(handle, Call::StreamQuery);
  if (!stream) return kInvalidHandle;
  if (!stream->idle()) return kNotReady;
  state.host.merge(stream->clock());
  return state.faults.sticky();
}

FAKECUDA_API Result cuStreamWaitEvent(StreamHandle handle, EventHandle event_handle, unsigned) {
  FAKECUDA_ENTER_IN_CONTEXT(StreamWaitEvent);
  State& state = State::get();
  const auto stream = state.find_stream(handle, Call::StreamWaitEvent);
  const auto event = state.events.find(event_handle);
  if (!event) return destroyed_handle(Call::StreamWaitEvent);
  if (!stream) return kInvalidHandle;
  const auto record = event->newest();
  if (!record) return kSuccess;
  Work work;
  work.operation.name = name_of(Call::StreamWaitEvent);
  work.wait = [record] { return record->wait(); };
  stream->submit(state.host, std::move(work));
  return kSuccess;
}

FAKECUDA_API Result cuStreamGetId(StreamHandle handle, unsigned long long* id) {
  FAKECUDA_ENTER_IN_CONTEXT(StreamGetId);
  if (!State::get().find_stream(handle, Call::StreamGetId)) return kInvalidHandle;
  *id = reinterpret_cast<uintptr_t>(handle);  // never used again
  return kSuccess;
}

FAKECUDA_API Result cuStreamIsCapturing(StreamHandle handle, CaptureStatus* status) {
  FAKECUDA_ENTER_IN_CONTEXT(StreamIsCapturing);
  const auto stream = State::get().find_stream(handle, Call::StreamIsCapturing);
  if (!stream) return kInvalidHandle;
  constexpr CaptureStatus kActive = 1;
  *status = stream->capturing ? kActive : kNotCapturing;
  return kSuccess;
}

FAKECUDA_API Result cuStreamWaitValue32_v2(StreamHandle handle, DevicePtr address, uint32_t value,
                                           unsigned flags) {
  FAKECUDA_ENTER_IN_CONTEXT(StreamWaitValue);
  State& state = State::get();
  const auto stream = state.find_stream(handle, Call::StreamWaitValue);
  if (!stream) return kInvalidHandle;
  if (flags != kWaitUntilReached || !state.is_word(address)) return kInvalidValue;
  Work work;
  work.operation.name = name_of(Call::StreamWaitValue);
  work.touched = {{address, sizeof(uint32_t)}};
  const auto* const word = reinterpret_cast<const uint32_t*>(state.bytes_at(address, sizeof(uint32_t)));
  work.held_up = [&state, word, value] { return state.words.missing(word, value); };
  work.wait = [&state, word, value] {
    if (!Words::wait(word, value, [&] { return state.faults.sticky() != kSuccess; }))
      state.violate("a stream waits for a value that nobody writes");
    return state.words.written_after(word, state.host);
  };
  stream->submit(state.host, std::move(work));
  return kSuccess;
}

FAKECUDA_API Result cuStreamWriteValue32_v2(StreamHandle handle, DevicePtr address, uint32_t value,
                                            unsigned flags) {
  FAKECUDA_ENTER_IN_CONTEXT(StreamWriteValue);
  State& state = State::get();
  const auto stream = state.find_stream(handle, Call::StreamWriteValue);
  if (!stream) return kInvalidHandle;
  if (flags != kWriteBehindAll || !state.is_word(address)) return kInvalidValue;
  lets_streams_go() = true;
  state.words.promise(reinterpret_cast<const uint32_t*>(state.bytes_at(address, sizeof(uint32_t))), value);
  Work work;
  work.operation.name = name_of(Call::StreamWriteValue);
  work.touched = {{address, sizeof(uint32_t)}};
  work.run = [&state, address, value](const Operation& operation) {
    auto* const word = reinterpret_cast<uint32_t*>(state.bytes_at(address, sizeof(uint32_t)));
    state.words.write(word, value, operation.before);
  };
  stream->submit(state.host, std::move(work));
  return kSuccess;
}

FAKECUDA_API Result cuLaunchHostFunc(StreamHandle handle, HostFunction* function, void* argument) {
  FAKECUDA_ENTER_IN_CONTEXT(LaunchHostFunc);
  State& state = State::get();
  const auto stream = state.find_stream(handle, Call::LaunchHostFunc);
  if (!stream) return kInvalidHandle;
  Work work;
  work.operation.name = name_of(Call::LaunchHostFunc);
  work.run = [&state, function, argument](const Operation& operation) {
    state.host.merge(operation.before);
    function(argument);
  };
  stream->submit(state.host, std::move(work));
  return kSuccess;
}

FAKECUDA_API Result cuEventCreate(EventHandle* handle, unsigned flags) {
  FAKECUDA_ENTER_IN_CONTEXT(EventCreate);
  *handle = State::get().events.add(std::make_shared<Event>((flags & kEventDisableTiming) == 0));
  return kSuccess;
}

FAKECUDA_API Result cuEventDestroy_v2(EventHandle handle) {
  State& state = State::get();
  const Result injected = state.faults.enter(Call::EventDestroy);
  if (!state.events.remove(handle)) return destroyed_handle(Call::EventDestroy);
  return injected;
}

FAKECUDA_API Result cuEventRecord(EventHandle handle, StreamHandle stream_handle) {
  FAKECUDA_ENTER_IN_CONTEXT(EventRecord);
  State& state = State::get();
  const auto event = state.events.find(handle);
  const auto stream = state.find_stream(stream_handle, Call::EventRecord);
  if (!event) return destroyed_handle(Call::EventRecord);
  if (!stream) return kInvalidHandle;
  const auto record = event->record();
  Work work;
  work.operation.name = name_of(Call::EventRecord);
  work.even_if_broken = true;
  work.run = [record](const Operation& operation) { record->finish(operation.before); };
  stream->submit(state.host, std::move(work));
  return kSuccess;
}

FAKECUDA_API Result cuEventQuery(EventHandle handle) {
  FAKECUDA_ENTER(EventQuery);
  State& state = State::get();
  const auto event = state.events.find(handle);
  if (!event) return destroyed_handle(Call::EventQuery);
  if (const auto record = event->newest()) {
    if (!record->finished()) return kNotReady;
    state.host.merge(record->wait());
  }
  return state.faults.sticky();
}

FAKECUDA_API Result cuEventSynchronize(EventHandle handle) {
  FAKECUDA_ENTER(EventSynchronize);
  State& state = State::get();
  const auto event = state.events.find(handle);
  if (!event) return destroyed_handle(Call::EventSynchronize);
  if (const auto record = event->newest()) state.host.merge(record->wait());
  return state.faults.sticky();
}

FAKECUDA_API Result cuEventElapsedTime(float* ms, EventHandle from_handle, EventHandle to_handle) {
  FAKECUDA_ENTER(EventElapsedTime);
  State& state = State::get();
  const auto from = state.events.find(from_handle), to = state.events.find(to_handle);
  if (!from || !to) return destroyed_handle(Call::EventElapsedTime);
  const auto begin = from->newest(), end = to->newest();
  if (!from->timing || !to->timing || !begin || !end) return kInvalidHandle;
  if (!begin->finished() || !end->finished()) return kNotReady;
  *ms = std::chrono::duration<float, std::milli>(end->finished_at() - begin->finished_at()).count();
  return kSuccess;
}

}  // namespace fakecuda
