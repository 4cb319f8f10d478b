// The driver's things as C++ objects: owners that move and give back what they hold, and views that do not
// own. The engine, its DMA queue and its kernels are the callers; nothing outside of cuda/ sees a raw handle.
//
// Making and destroying works in any thread. The calls of StreamView, Event and Function, which are made in
// every step, need the context to be current in the calling thread: Context::make_current() or ContextScope.
// Every call may throw GpuError; after a sticky one (driver_error.h) so does every later call.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "cuda/device_info.h"
#include "cuda/driver_table.h"

namespace moerun::cuda {

class Context;
using ContextPtr = std::shared_ptr<const Context>;

struct MemoryState {
  int64_t free_bytes = 0, total_bytes = 0;
};

// The primary context of a device, which torch uses too, so that pointers and streams go both ways.
class Context {
 public:
  // Throws GpuUnavailable, GpuOutOfMemory or GpuError.
  static ContextPtr open(Driver driver, int device_index = 0);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  const DriverTable& driver() const { return *driver_; }
  const DeviceInfo& device() const { return info_; }
  MemoryState memory() const;  // as the driver sees it now, all processes together

  // For a thread that works with this device only, such as the scheduler's.
  void make_current() const;

 private:
  friend class ContextScope;
  template <class Handle>
  friend class Owned;
  Context(Driver driver, int device_index);

  Driver driver_;
  DeviceInfo info_;
  DeviceOrdinal ordinal_ = 0;
  ContextHandle handle_ = nullptr;
};

// Makes the context current and restores the thread's former one: for threads that belong to others.
class ContextScope {
 public:
  explicit ContextScope(const Context& context);
  ~ContextScope();
  ContextScope(const ContextScope&) = delete;
  ContextScope& operator=(const ContextScope&) = delete;

 private:
  const DriverTable& driver_;
};

// Something of the driver, and how it is given back. A failure to give back is ignored: it repeats a sticky
// error that an earlier call has reported.
template <class Handle>
class Owned {
 public:
  using ReleaseFunction = DriverFunction<Result(Handle)>;

  Owned(ContextPtr context, Handle handle, const ReleaseFunction& release)
      : context_(std::move(context)), handle_(handle), release_(&release) {}
  Owned(Owned&& other) noexcept
      : context_(std::move(other.context_)), handle_(other.handle_), release_(other.release_) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(context_, other.context_);
    std::swap(handle_, other.handle_);
    std::swap(release_, other.release_);
    return *this;
  }
  ~Owned();

  const ContextPtr& context() const { return context_; }
  Handle get() const { return handle_; }

 private:
  ContextPtr context_;  // null once moved from
  Handle handle_;
  const ReleaseFunction* release_;
};

// A point in the work of a stream.
class Event {
 public:
  struct Options {
    bool timing = false;   // for elapsed_ms; costs a little on the device
    bool blocking = true;  // synchronize() sleeps instead of spinning
  };
  explicit Event(ContextPtr context) : Event(std::move(context), Options{}) {}
  Event(ContextPtr context, Options options);

  bool done() const;                            // also when it was never recorded
  void synchronize() const;                     // waits in the calling thread
  double elapsed_ms(const Event& since) const;  // both recorded with timing, and done

 private:
  friend class StreamView;
  Owned<EventHandle> event_;
};

// A queue of work on the device, in order. Everything here is asynchronous but synchronize().
// Host memory of a copy must be pinned, or the driver stages it and the call may wait.
class StreamView {
 public:
  // A stream of somebody else, by its handle: torch.cuda.Stream.cuda_stream. 0 is the default stream.
  static StreamView borrow(const Context& context, uintptr_t handle);

  void copy_to_device(DevicePtr to, const void* from, size_t bytes) const;
  void copy_to_host(void* to, DevicePtr from, size_t bytes) const;
  void copy_on_device(DevicePtr to, DevicePtr from, size_t bytes) const;
  void fill(DevicePtr to, uint8_t value, size_t bytes) const;

  void record(Event& event) const;      // the event is done when all work up to here is
  void wait(const Event& event) const;  // later work waits for the event, on the device
  // Later work waits, on the device, until the word of pinned memory has reached the value, counted so that
  // 2^32 - 1 comes before 0. The word may be written by a stream that has yet to be given what it writes
  // behind: the driver knows nothing of this order, so a stream must not wait for what shares its hardware
  // queue. Only where can_wait_for_values().
  void wait_for_value(const uint32_t* word, uint32_t value) const;
  // Writes it behind all earlier work of the stream, whose results are visible to who sees the value.
  void write_value(uint32_t* word, uint32_t value) const;
  bool can_wait_for_values() const { return driver_->StreamWaitValue && driver_->StreamWriteValue; }

  uint64_t id() const;     // of this stream alone in all of the process's life, unlike the handle
  bool capturing() const;  // into a CUDA graph

  // Runs in a thread of the driver, in the stream's order. The function must not call the driver or throw.
  void call_on_host(HostFunction* function, void* argument) const;

  bool idle() const;         // whether all work is done
  void synchronize() const;  // waits in the calling thread

 protected:
  StreamView(const DriverTable& driver, StreamHandle handle) : driver_(&driver), handle_(handle) {}

 private:
  friend class Function;
  const DriverTable* driver_;
  StreamHandle handle_;
};

// A stream that does not wait for the default stream. Destroying it waits for nothing: work goes on.
class Stream : public StreamView {
 public:
  // A lower number goes first; the driver clamps it. Copies know no priority.
  explicit Stream(ContextPtr context, int priority = 0);

 private:
  explicit Stream(Owned<StreamHandle> stream);
  Owned<StreamHandle> stream_;
};

// Memory of the device; uninitialised.
class DeviceMemory {
 public:
  // Throws GpuOutOfMemory, saying how much was asked for and how much is free.
  DeviceMemory(ContextPtr context, size_t bytes);
  DevicePtr address() const { return memory_.get(); }
  size_t bytes() const { return bytes_; }

 private:
  Owned<DevicePtr> memory_;
  size_t bytes_;
};

// Page-locked host memory, which copies reach at full speed and without stopping the caller; uninitialised.
class PinnedMemory {
 public:
  // Throws GpuOutOfMemory where the system will not lock so much.
  PinnedMemory(ContextPtr context, size_t bytes);
  void* data() const { return memory_.get(); }
  size_t bytes() const { return bytes_; }

 private:
  Owned<void*> memory_;
  size_t bytes_;
};

// Host memory that somebody else allocated or mapped, page-locked for as long as this lives. The memory must
// outlive it.
class RegisteredMemory {
 public:
  enum class Access : uint8_t { read_write, read_only };  // read_only: for mappings without PROT_WRITE

  // Systems limit what may be locked, and some mappings cannot be; so a refusal is a result, and `why_not`
  // tells the reason. Throws GpuError only for sticky errors.
  static std::optional<RegisteredMemory> try_register(ContextPtr context, void* data, size_t bytes,
                                                      Access access, std::string& why_not);
  void* data() const { return memory_.get(); }
  size_t bytes() const { return bytes_; }

 private:
  RegisteredMemory(Owned<void*> memory, size_t bytes) : memory_(std::move(memory)), bytes_(bytes) {}
  Owned<void*> memory_;
  size_t bytes_;
};

struct Grid {
  unsigned x = 1, y = 1, z = 1;  // blocks
};

// A kernel of a loaded module; valid as long as the module.
class Function {
 public:
  // Bytes of parameter `index`; 0 if the kernel has fewer. nullopt if the driver is too old to tell.
  std::optional<size_t> parameter_bytes(size_t index) const;
  void allow_shared_memory(unsigned bytes) const;  // needed above 48 KiB
  // `parameters` points at the values, in order; they are read before this returns.
  void launch(const StreamView& stream, Grid grid, unsigned threads, unsigned shared_bytes,
              void** parameters) const;

 private:
  friend class Module;
  Function(const DriverTable& driver, FunctionHandle handle) : driver_(&driver), handle_(handle) {}
  const DriverTable* driver_;
  FunctionHandle handle_;
};

// Compiled kernels on the device.
class Module {
 public:
  // `image` is a cubin. Throws GpuError if it is damaged or for another architecture.
  Module(ContextPtr context, const std::string& image);
  const Context& context() const { return *module_.context(); }
  Function function(const std::string& name) const;  // throws GpuError if there is none of that name

 private:
  Owned<ModuleHandle> module_;
};

}  // namespace moerun::cuda
