// All that the stand-in driver knows, in one place; api_*.cc hold the exported functions that work on it.
// There is one, as there is one driver, and it is never destroyed: threads may outlive main().
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda/driver_types.h"
#include "tests/fakecuda/faults.h"
#include "tests/fakecuda/handle_table.h"
#include "tests/fakecuda/happens_before.h"
#include "tests/fakecuda/memory.h"
#include "tests/fakecuda/module_image.h"
#include "tests/fakecuda/options.h"
#include "tests/fakecuda/stream.h"
#include "tests/fakecuda/words.h"

namespace fakecuda {

#define FAKECUDA_API extern "C" __attribute__((visibility("default")))

// The exported functions, as the table declares them: a definition of another type does not compile.
#define FAKECUDA_DECLARE(member, symbol, ...) FAKECUDA_API std::type_identity_t<__VA_ARGS__> symbol;
MOERUN_CUDA_FUNCTIONS(FAKECUDA_DECLARE)
MOERUN_CUDA_OPTIONAL_FUNCTIONS(FAKECUDA_DECLARE)
#undef FAKECUDA_DECLARE

enum class Counter : int {
  launches,
  h2d_copies,
  h2d_bytes,
  d2h_copies,
  d2h_bytes,
  d2d_copies,
  d2d_bytes,
  unpinned_copies,
  kCounters
};

struct DeviceContext {
  int device = 0;
  int retained = 0;
  void* handle = nullptr;
};

struct Module {
  void* context = nullptr;
  std::vector<std::pair<std::string, void*>> functions;  // name, handle
};

class State {
 public:
  static State& get();

  Options options;
  Faults faults;
  DeviceSpace device;
  HostRanges pinned, registered;
  HandleTable<Stream> streams;
  HandleTable<Event> events;
  HandleTable<Module> modules;
  HandleTable<Kernel> functions;
  HostClock host;
  HappensBefore order;
  Words words;

  void count(Counter counter, int64_t n = 1) {
    counters_[static_cast<size_t>(counter)].fetch_add(n, std::memory_order_relaxed);
  }
  int64_t counted(Counter counter) const {
    return counters_[static_cast<size_t>(counter)].load(std::memory_order_relaxed);
  }
  void violate(const std::string& text);
  int64_t violations() const;
  const char* violation(int64_t index) const;
  void reset();

  // Contexts. What is current is a stack of each thread's own.
  Result retain(int device, void** handle);
  Result release(int device);
  bool is_context(void* handle) const;
  int64_t contexts() const;

  // Streams keep their places in clocks until their work is done.
  std::shared_ptr<Stream> make_stream(void* context);
  void retire(std::shared_ptr<Stream> stream);
  std::shared_ptr<Stream> find_stream(void* handle, Call call);  // null, and a violation, if destroyed
  void synchronize_all() const;
  std::vector<std::shared_ptr<Stream>> all_streams() const;

  // Frees nothing; notes a violation if queued work touches the bytes, and waits for it as the driver does.
  void before_free(uint64_t address, int64_t bytes, Call call);

  // Before calls that may make the driver wait for all streams: notes a violation if one of them waits for a
  // value, and this thread is the one that writes such values.
  void may_wait_for_all(Call call);

  // Whether four aligned bytes of pinned or device memory begin there.
  bool is_word(uint64_t address) const;
  // The bytes behind a device's address, or pinned ones; null if they are not all there.
  std::byte* bytes_at(uint64_t address, int64_t bytes) const;

 private:
  State();

  std::array<std::atomic<int64_t>, static_cast<size_t>(Counter::kCounters)> counters_ = {};
  mutable std::mutex mutex_;  // of all below
  std::deque<std::string> violations_;
  std::vector<DeviceContext> contexts_;
  std::shared_ptr<Stream> default_stream_;
  std::vector<std::shared_ptr<Stream>> retired_;
  std::vector<std::shared_ptr<Connection>> connections_;
  std::array<int64_t, kMaxStreams> place_operations_ = {};
  std::array<bool, kMaxStreams> place_taken_ = {};
};

// The current context of this thread, or null.
std::vector<void*>& context_stack();

// Whether this thread has written values that streams wait for.
bool& lets_streams_go();

// Counts the call; returns from the calling function if it has to fail.
#define FAKECUDA_ENTER(member) \
  if (const Result injected = State::get().faults.enter(Call::member); injected != kSuccess) return injected

// The same for functions that need a current context.
#define FAKECUDA_ENTER_IN_CONTEXT(member) \
  FAKECUDA_ENTER(member);                 \
  if (context_stack().empty()) return without_context(Call::member)

Result without_context(Call call);
Result destroyed_handle(Call call);

}  // namespace fakecuda
