#include "tests/fakecuda/state.h"

#include <algorithm>

namespace fakecuda {

State& State::get() {
  static State& state = *new State;  // never destroyed
  return state;
}

State::State() : options(read_options()) {
  faults.reset(options.fail);
}

std::vector<void*>& context_stack() {
  thread_local std::vector<void*> stack;
  return stack;
}

bool& lets_streams_go() {
  thread_local bool does = false;
  return does;
}

Result without_context(Call call) {
  State::get().violate(std::string(name_of(call)) + " without a current context");
  return kInvalidContext;
}

Result destroyed_handle(Call call) {
  State::get().violate(std::string(name_of(call)) + " of a destroyed or unknown handle");
  return kInvalidHandle;
}

void State::violate(const std::string& text) {
  const std::lock_guard lock(mutex_);
  violations_.push_back(text);
}

int64_t State::violations() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int64_t>(violations_.size());
}

const char* State::violation(int64_t index) const {
  const std::lock_guard lock(mutex_);
  const bool there = index >= 0 && index < static_cast<int64_t>(violations_.size());
  return there ? violations_[static_cast<size_t>(index)].c_str() : nullptr;
}

void State::reset() {
  synchronize_all();
  options = read_options();
  faults.reset(options.fail);
  for (auto& counter : counters_) counter.store(0, std::memory_order_relaxed);
  const std::lock_guard lock(mutex_);
  violations_.clear();
}

Result State::retain(int device, void** handle) {
  const std::lock_guard lock(mutex_);
  if (device < 0 || device >= options.devices) return kInvalidDevice;
  constexpr uintptr_t kFirstContext = 0x1000;
  for (int i = static_cast<int>(contexts_.size()); i <= device; ++i)
    contexts_.push_back({i, 0, reinterpret_cast<void*>(kFirstContext + static_cast<uintptr_t>(i))});
  DeviceContext& context = contexts_[static_cast<size_t>(device)];
  ++context.retained;
  *handle = context.handle;
  return kSuccess;
}

Result State::release(int device) {
  std::vector<std::shared_ptr<Stream>> finished;
  {
    const std::lock_guard lock(mutex_);
    if (device < 0 || device >= static_cast<int>(contexts_.size())) return kInvalidDevice;
    DeviceContext& context = contexts_[static_cast<size_t>(device)];
    if (context.retained == 0) return kInvalidContext;
    if (--context.retained > 0) return kSuccess;
    for (const auto& stream : retired_)
      if (stream->context() == context.handle) finished.push_back(stream);
  }
  for (const auto& stream : finished) stream->synchronize();
  return kSuccess;
}

bool State::is_context(void* handle) const {
  const std::lock_guard lock(mutex_);
  return std::any_of(contexts_.begin(), contexts_.end(),
                     [&](const DeviceContext& c) { return c.handle == handle && c.retained > 0; });
}

int64_t State::contexts() const {
  const std::lock_guard lock(mutex_);
  return std::count_if(contexts_.begin(), contexts_.end(),
                       [](const DeviceContext& c) { return c.retained > 0; });
}

std::shared_ptr<Stream> State::make_stream(void* context) {
  const std::lock_guard lock(mutex_);
  // Threads of destroyed streams that have done their work end here, and their places become free.
  const auto busy =
      std::partition(retired_.begin(), retired_.end(), [](const auto& s) { return !s->idle(); });
  for (auto stream = busy; stream != retired_.end(); ++stream) {
    const auto place = static_cast<size_t>((*stream)->number());
    place_operations_[place] = (*stream)->operations();
    place_taken_[place] = false;
  }
  retired_.erase(busy, retired_.end());

  const auto free_place = std::find(place_taken_.begin(), place_taken_.end(), false);
  if (free_place == place_taken_.end()) return nullptr;
  *free_place = true;
  const auto place = static_cast<size_t>(free_place - place_taken_.begin());
  std::shared_ptr<Connection> connection;
  if (options.connections > 0) {
    while (static_cast<int>(connections_.size()) < options.connections)
      connections_.push_back(std::make_shared<Connection>());
    connection = connections_[place % static_cast<size_t>(options.connections)];
  }
  return std::make_shared<Stream>(context, static_cast<int>(place), place_operations_[place],
                                  Stream::Shake{options.shake_seed, options.shake_us}, std::move(connection),
                                  [this] { return faults.sticky() != kSuccess; });
}

void State::retire(std::shared_ptr<Stream> stream) {
  const std::lock_guard lock(mutex_);
  retired_.push_back(std::move(stream));
}

std::shared_ptr<Stream> State::find_stream(void* handle, Call call) {
  if (handle == nullptr) {
    {
      const std::lock_guard lock(mutex_);
      if (default_stream_) return default_stream_;
    }
    std::shared_ptr<Stream> made = make_stream(context_stack().back());
    const std::lock_guard lock(mutex_);
    if (!default_stream_) default_stream_ = std::move(made);
    return default_stream_;
  }
  std::shared_ptr<Stream> stream = streams.find(handle);
  if (!stream) destroyed_handle(call);
  return stream;
}

std::vector<std::shared_ptr<Stream>> State::all_streams() const {
  std::vector<std::shared_ptr<Stream>> all = streams.all();
  {
    const std::lock_guard lock(mutex_);
    all.insert(all.end(), retired_.begin(), retired_.end());
    if (default_stream_) all.push_back(default_stream_);
  }
  return all;
}

void State::synchronize_all() const {
  for (const auto& stream : all_streams()) stream->synchronize();
}

void State::before_free(uint64_t address, int64_t bytes, Call call) {
  bool in_use = false;
  for (const auto& stream : all_streams()) {
    if (!stream->touches(address, bytes)) continue;
    in_use = true;
    stream->synchronize();
  }
  if (in_use && faults.sticky() == kSuccess)
    violate(std::string(name_of(call)) + " of memory that queued work touches");
  order.forget(address, bytes);
  words.forget(address, bytes);
}

void State::may_wait_for_all(Call call) {
  if (!lets_streams_go() || faults.sticky() != kSuccess) return;
  for (const auto& stream : all_streams())
    if (stream->held_up())
      return violate(std::string(name_of(call)) +
                     " in a thread that streams wait for: the driver may wait for these streams first");
}

bool State::is_word(uint64_t address) const {
  return address % sizeof(uint32_t) == 0 && bytes_at(address, sizeof(uint32_t)) != nullptr;
}

std::byte* State::bytes_at(uint64_t address, int64_t bytes) const {
  if (device.owns(address)) return device.shadow(address, bytes);
  if (pinned.covers(address, bytes) || registered.covers(address, bytes))
    return reinterpret_cast<std::byte*>(address);
  return nullptr;
}

}  // namespace fakecuda
