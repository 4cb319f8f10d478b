// Streams and events.
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
  const Clock clock = stream->clock();
  stream->synchronize();
  state.host.merge(clock);
  return state.faults.sticky();
}

FAKECUDA_API Result cuStreamQuery(StreamHandle handle) {
  FAKECUDA_ENTER_IN_CONTEXT(StreamQuery);
  State& state = State::get();
  const auto stream = state.find_stream(handle, Call::StreamQuery);
  if (!stream) return kInvalidHandle;
  const Clock clock = stream->clock();
  if (!stream->idle()) return kNotReady;
  state.host.merge(clock);
  return state.faults.sticky();
}

FAKECUDA_API Result cuStreamWaitEvent(StreamHandle handle, EventHandle event_handle, unsigned) {
  FAKECUDA_ENTER_IN_CONTEXT(StreamWaitEvent);
  State& state = State::get();
  const auto stream = state.find_stream(handle, Call::StreamWaitEvent);
  const auto event = state.events.find(event_handle);
  if (!event) return destroyed_handle(Call::StreamWaitEvent);
  if (!stream) return kInvalidHandle;
  const auto [ticket, clock] = event->newest();
  Work work;
  work.operation.name = name_of(Call::StreamWaitEvent);
  work.even_if_broken = true;
  work.run = [event, ticket = ticket](const Operation&) { event->wait(ticket); };
  stream->submit(state.host, clock, std::move(work));
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
  stream->submit(state.host, {}, std::move(work));
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
  // The ticket is drawn before the operation is appended; one thread records an event at a time.
  const int64_t ticket = event->record(stream->clock());
  Work work;
  work.operation.name = name_of(Call::EventRecord);
  work.even_if_broken = true;
  work.run = [event, ticket](const Operation&) { event->finish(ticket); };
  stream->submit(state.host, {}, std::move(work));
  return kSuccess;
}

FAKECUDA_API Result cuEventQuery(EventHandle handle) {
  FAKECUDA_ENTER(EventQuery);
  State& state = State::get();
  const auto event = state.events.find(handle);
  if (!event) return destroyed_handle(Call::EventQuery);
  const auto [ticket, clock] = event->newest();
  if (!event->finished(ticket)) return kNotReady;
  state.host.merge(clock);
  return state.faults.sticky();
}

FAKECUDA_API Result cuEventSynchronize(EventHandle handle) {
  FAKECUDA_ENTER(EventSynchronize);
  State& state = State::get();
  const auto event = state.events.find(handle);
  if (!event) return destroyed_handle(Call::EventSynchronize);
  const auto [ticket, clock] = event->newest();
  event->wait(ticket);
  state.host.merge(clock);
  return state.faults.sticky();
}

FAKECUDA_API Result cuEventElapsedTime(float* ms, EventHandle from_handle, EventHandle to_handle) {
  FAKECUDA_ENTER(EventElapsedTime);
  State& state = State::get();
  const auto from = state.events.find(from_handle), to = state.events.find(to_handle);
  if (!from || !to) return destroyed_handle(Call::EventElapsedTime);
  const int64_t from_ticket = from->newest().first, to_ticket = to->newest().first;
  if (!from->timing || !to->timing || from_ticket == 0 || to_ticket == 0) return kInvalidHandle;
  if (!from->finished(from_ticket) || !to->finished(to_ticket)) return kNotReady;
  *ms = std::chrono::duration<float, std::milli>(to->finished_at() - from->finished_at()).count();
  return kSuccess;
}

}  // namespace fakecuda
