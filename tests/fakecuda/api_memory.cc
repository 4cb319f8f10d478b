// Device memory, pinned memory and copies.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>

#include "tests/fakecuda/state.h"

namespace fakecuda {
namespace {

uint64_t number(const void* pointer) {
  return reinterpret_cast<uint64_t>(pointer);
}

bool is_pinned(const void* data, size_t bytes) {
  const State& state = State::get();
  const auto size = static_cast<int64_t>(bytes);
  return state.pinned.covers(number(data), size) || state.registered.covers(number(data), size);
}

// A copy engine goes through its copies one after the other, if it is throttled at all.
struct CopyEngine {
  std::mutex mutex;
  void move(std::byte* to, const std::byte* from, size_t bytes, int64_t bytes_per_s) {
    if (bytes_per_s <= 0) {
      std::memcpy(to, from, bytes);
      return;
    }
    const std::lock_guard lock(mutex);
    std::this_thread::sleep_for(
        std::chrono::duration<double>(static_cast<double>(bytes) / static_cast<double>(bytes_per_s)));
    std::memcpy(to, from, bytes);
  }
};

CopyEngine& to_device_engine() {
  static CopyEngine& engine = *new CopyEngine;
  return engine;
}

CopyEngine& to_host_engine() {
  static CopyEngine& engine = *new CopyEngine;
  return engine;
}

void check_order(const std::string& problem) {
  if (!problem.empty()) State::get().violate(problem);
}

struct Copy {
  Call call;
  uint64_t to = 0, from = 0;
  size_t bytes = 0;
};

// Appends a copy between addresses that are known to be good.
template <class Move>
void submit_copy(Stream& stream, const Copy& copy, Move move) {
  State& state = State::get();
  const auto bytes = static_cast<int64_t>(copy.bytes);
  Work work;
  work.operation.name = name_of(copy.call);
  work.touched = {{copy.to, bytes}, {copy.from, bytes}};
  work.run = [&state, copy, bytes, move](const Operation& operation) {
    check_order(state.order.read(operation, copy.from, bytes));
    check_order(state.order.write(operation, copy.to, bytes));
    move(state.bytes_at(copy.to, bytes), state.bytes_at(copy.from, bytes));
  };
  stream.submit(state.host, std::move(work));
}

// Gives back in any case; after a fault the driver gives back everything, with a context or without.
template <class Function>
Result release(Call call, Function function) {
  const Result injected = State::get().faults.enter(call);
  if (context_stack().empty() && State::get().faults.sticky() == kSuccess) return without_context(call);
  State::get().may_wait_for_all(call);
  const Result released = function();
  return injected != kSuccess ? injected : released;
}

}  // namespace

FAKECUDA_API Result cuMemGetInfo_v2(size_t* free_bytes, size_t* total_bytes) {
  FAKECUDA_ENTER_IN_CONTEXT(MemGetInfo);
  const State& state = State::get();
  *total_bytes = static_cast<size_t>(state.options.memory_bytes);
  *free_bytes = static_cast<size_t>(std::max<int64_t>(0, state.options.memory_bytes - state.device.bytes()));
  return kSuccess;
}

FAKECUDA_API Result cuMemAlloc_v2(DevicePtr* address, size_t bytes) {
  FAKECUDA_ENTER_IN_CONTEXT(MemAlloc);
  State& state = State::get();
  state.may_wait_for_all(Call::MemAlloc);
  if (bytes == 0) return kInvalidValue;
  *address = state.device.allocate(static_cast<int64_t>(bytes), state.options.memory_bytes);
  return *address != 0 ? kSuccess : kOutOfMemory;
}

FAKECUDA_API Result cuMemFree_v2(DevicePtr address) {
  return release(Call::MemFree, [&] {
    State& state = State::get();
    const int64_t bytes = state.device.bytes_of(address);
    if (bytes == 0) return destroyed_handle(Call::MemFree);
    state.before_free(address, bytes, Call::MemFree);
    state.device.release(address);
    return kSuccess;
  });
}

FAKECUDA_API Result cuMemHostAlloc(void** data, size_t bytes, unsigned) {
  FAKECUDA_ENTER_IN_CONTEXT(MemHostAlloc);
  State& state = State::get();
  state.may_wait_for_all(Call::MemHostAlloc);
  constexpr size_t kPage = 4096;
  const int64_t locked = state.pinned.bytes() + state.registered.bytes();
  if (bytes == 0) return kInvalidValue;
  if (static_cast<int64_t>(bytes) > state.options.pinned_bytes - locked) return kOutOfMemory;
  if (posix_memalign(data, kPage, bytes) != 0) return kOutOfMemory;
  std::memset(*data, 0xFF, bytes);
  state.pinned.add(number(*data), static_cast<int64_t>(bytes));
  return kSuccess;
}

FAKECUDA_API Result cuMemFreeHost(void* data) {
  return release(Call::MemFreeHost, [&] {
    State& state = State::get();
    const int64_t bytes = state.pinned.bytes_of(number(data));
    if (bytes == 0) return destroyed_handle(Call::MemFreeHost);
    state.before_free(number(data), bytes, Call::MemFreeHost);
    state.pinned.remove(number(data));
    std::free(data);
    return kSuccess;
  });
}

FAKECUDA_API Result cuMemHostRegister_v2(void* data, size_t bytes, unsigned flags) {
  FAKECUDA_ENTER_IN_CONTEXT(MemHostRegister);
  State& state = State::get();
  state.may_wait_for_all(Call::MemHostRegister);
  const bool read_only = (flags & kHostRegisterReadOnly) != 0;
  if (!state.options.can_register || (read_only && !state.options.can_register_read_only))
    return kNotSupported;
  if (data == nullptr || bytes == 0) return kInvalidValue;
  const int64_t locked = state.pinned.bytes() + state.registered.bytes();
  if (static_cast<int64_t>(bytes) > state.options.pinned_bytes - locked) return kOutOfMemory;
  const bool added = state.registered.add(number(data), static_cast<int64_t>(bytes));
  return added ? kSuccess : kHostMemoryAlreadyRegistered;
}

FAKECUDA_API Result cuMemHostUnregister(void* data) {
  return release(Call::MemHostUnregister, [&] {
    State& state = State::get();
    const int64_t bytes = state.registered.bytes_of(number(data));
    if (bytes == 0) return kHostMemoryNotRegistered;
    state.before_free(number(data), bytes, Call::MemHostUnregister);
    state.registered.remove(number(data));
    return kSuccess;
  });
}

FAKECUDA_API Result cuMemcpyHtoDAsync_v2(DevicePtr to, const void* from, size_t bytes, StreamHandle handle) {
  FAKECUDA_ENTER_IN_CONTEXT(MemcpyHtoDAsync);
  State& state = State::get();
  const auto stream = state.find_stream(handle, Call::MemcpyHtoDAsync);
  if (!stream) return kInvalidHandle;
  if (state.device.shadow(to, static_cast<int64_t>(bytes)) == nullptr) return kInvalidValue;
  state.count(Counter::h2d_copies);
  state.count(Counter::h2d_bytes, static_cast<int64_t>(bytes));
  const int64_t bytes_per_s = state.options.h2d_bytes_per_s;
  const auto move = [bytes, bytes_per_s](std::byte* target, const std::byte* source) {
    to_device_engine().move(target, source, bytes, bytes_per_s);
  };
  if (is_pinned(from, bytes)) {
    submit_copy(*stream, {Call::MemcpyHtoDAsync, to, number(from), bytes}, move);
    return kSuccess;
  }
  // The driver stages memory that is not pinned, before it returns.
  state.count(Counter::unpinned_copies);
  const auto* const begin = static_cast<const std::byte*>(from);
  const auto staged = std::make_shared<std::vector<std::byte>>(begin, begin + bytes);
  Work work;
  work.operation.name = name_of(Call::MemcpyHtoDAsync);
  work.touched = {{to, static_cast<int64_t>(bytes)}};
  work.run = [&state, to, staged, move](const Operation& operation) {
    const auto size = static_cast<int64_t>(staged->size());
    check_order(state.order.write(operation, to, size));
    move(state.bytes_at(to, size), staged->data());
  };
  stream->submit(state.host, std::move(work));
  return kSuccess;
}

FAKECUDA_API Result cuMemcpyDtoHAsync_v2(void* to, DevicePtr from, size_t bytes, StreamHandle handle) {
  FAKECUDA_ENTER_IN_CONTEXT(MemcpyDtoHAsync);
  State& state = State::get();
  const auto stream = state.find_stream(handle, Call::MemcpyDtoHAsync);
  if (!stream) return kInvalidHandle;
  const auto size = static_cast<int64_t>(bytes);
  if (state.device.shadow(from, size) == nullptr) return kInvalidValue;
  state.count(Counter::d2h_copies);
  state.count(Counter::d2h_bytes, size);
  const int64_t bytes_per_s = state.options.d2h_bytes_per_s;
  const auto move = [bytes, bytes_per_s](std::byte* target, const std::byte* source) {
    to_host_engine().move(target, source, bytes, bytes_per_s);
  };
  if (is_pinned(to, bytes)) {
    submit_copy(*stream, {Call::MemcpyDtoHAsync, number(to), from, bytes}, move);
    return kSuccess;
  }
  // The driver waits until memory that is not pinned has been written.
  state.count(Counter::unpinned_copies);
  Work work;
  work.operation.name = name_of(Call::MemcpyDtoHAsync);
  work.touched = {{from, size}};
  work.run = [&state, to, from, size, move](const Operation& operation) {
    check_order(state.order.read(operation, from, size));
    move(static_cast<std::byte*>(to), state.bytes_at(from, size));
  };
  stream->submit(state.host, std::move(work));
  stream->synchronize();
  state.host.merge(stream->clock());
  return state.faults.sticky();
}

FAKECUDA_API Result cuMemcpyDtoDAsync_v2(DevicePtr to, DevicePtr from, size_t bytes, StreamHandle handle) {
  FAKECUDA_ENTER_IN_CONTEXT(MemcpyDtoDAsync);
  State& state = State::get();
  const auto stream = state.find_stream(handle, Call::MemcpyDtoDAsync);
  if (!stream) return kInvalidHandle;
  const auto size = static_cast<int64_t>(bytes);
  if (state.device.shadow(to, size) == nullptr || state.device.shadow(from, size) == nullptr)
    return kInvalidValue;
  state.count(Counter::d2d_copies);
  state.count(Counter::d2d_bytes, size);
  submit_copy(*stream, {Call::MemcpyDtoDAsync, to, from, bytes},
              [bytes](std::byte* target, const std::byte* source) { std::memmove(target, source, bytes); });
  return kSuccess;
}

FAKECUDA_API Result cuMemsetD8Async(DevicePtr to, unsigned char value, size_t bytes, StreamHandle handle) {
  FAKECUDA_ENTER_IN_CONTEXT(MemsetD8Async);
  State& state = State::get();
  const auto stream = state.find_stream(handle, Call::MemsetD8Async);
  if (!stream) return kInvalidHandle;
  const auto size = static_cast<int64_t>(bytes);
  if (state.device.shadow(to, size) == nullptr) return kInvalidValue;
  Work work;
  work.operation.name = name_of(Call::MemsetD8Async);
  work.touched = {{to, size}};
  work.run = [&state, to, value, size](const Operation& operation) {
    check_order(state.order.write(operation, to, size));
    std::memset(state.bytes_at(to, size), value, static_cast<size_t>(size));
  };
  stream->submit(state.host, std::move(work));
  return kSuccess;
}

}  // namespace fakecuda
