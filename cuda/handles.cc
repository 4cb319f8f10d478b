#include "cuda/handles.h"

#include "cuda/driver_error.h"
#include "src/error.h"

namespace moerun::cuda {
namespace {

std::string mebibytes(int64_t bytes) {
  constexpr int64_t kMiB = int64_t{1} << 20;
  return bytes < kMiB ? std::to_string(bytes) + " bytes" : std::to_string((bytes + kMiB - 1) / kMiB) + " MiB";
}

// Calls a function that makes a handle, with the context current.
template <class Handle, class... Parameters, class... Arguments>
Owned<Handle> make(ContextPtr context, const DriverFunction<Result(Handle*, Parameters...)>& function,
                   const DriverFunction<Result(Handle)>& release, const std::string& doing,
                   Arguments... arguments) {
  const ContextScope scope(*context);
  Handle handle{};
  const Result result = function(&handle, arguments...);
  if (result != kSuccess) context->driver().fail(result, function.name, doing);
  return Owned<Handle>(std::move(context), handle, release);
}

}  // namespace

// --- Context

ContextPtr Context::open(Driver driver, int device_index) {
  return ContextPtr(new Context(std::move(driver), device_index));
}

Context::Context(Driver driver, int device_index)
    : driver_(std::move(driver)), info_(describe_device(*driver_, device_index)) {
  driver_->call(driver_->DeviceGet, "choosing a device", &ordinal_, device_index);
  driver_->call(driver_->PrimaryCtxRetain, "opening the device's context", &handle_, ordinal_);
}

Context::~Context() {
  driver_->PrimaryCtxRelease(ordinal_);
}

MemoryState Context::memory() const {
  const ContextScope scope(*this);
  size_t free_bytes = 0, total_bytes = 0;
  driver_->call(driver_->MemGetInfo, "asking for free device memory", &free_bytes, &total_bytes);
  return {static_cast<int64_t>(free_bytes), static_cast<int64_t>(total_bytes)};
}

void Context::make_current() const {
  driver_->call(driver_->CtxSetCurrent, "making the context current", handle_);
}

ContextScope::ContextScope(const Context& context) : driver_(context.driver()) {
  driver_.call(driver_.CtxPushCurrent, "making the context current", context.handle_);
}

ContextScope::~ContextScope() {
  ContextHandle popped = nullptr;
  driver_.CtxPopCurrent(&popped);
}

// --- Owned

template <class Handle>
Owned<Handle>::~Owned() {
  if (!context_) return;
  const DriverTable& driver = context_->driver();
  ContextHandle popped = nullptr;
  Result pushed = driver.CtxPushCurrent(context_->handle_);
  if (pushed != kSuccess) pushed = driver.CtxPushCurrent(context_->handle_);  // nobody else gives it back
  (*release_)(handle_);
  if (pushed == kSuccess) driver.CtxPopCurrent(&popped);
}

template class Owned<void*>;
template class Owned<DevicePtr>;

// --- Event

Event::Event(ContextPtr context, Options options)
    : event_(make<EventHandle>(
          context, context->driver().EventCreate, context->driver().EventDestroy, "making an event",
          (options.timing ? 0U : kEventDisableTiming) | (options.blocking ? kEventBlockingSync : 0U))) {}

bool Event::done() const {
  const DriverTable& driver = event_.context()->driver();
  const Result result = driver.EventQuery(event_.get());
  if (result != kSuccess && result != kNotReady)
    driver.fail(result, driver.EventQuery.name, "asking whether an event is done");
  return result == kSuccess;
}

void Event::synchronize() const {
  const DriverTable& driver = event_.context()->driver();
  driver.call(driver.EventSynchronize, "waiting for an event", event_.get());
}

double Event::elapsed_ms(const Event& since) const {
  const DriverTable& driver = event_.context()->driver();
  float ms = 0;
  driver.call(driver.EventElapsedTime, "asking for the time between two events", &ms, since.event_.get(),
              event_.get());
  return ms;
}

// --- StreamView, Stream

StreamView StreamView::borrow(const Context& context, uintptr_t handle) {
  return {context.driver(), reinterpret_cast<StreamHandle>(handle)};
}

void StreamView::copy_to_device(DevicePtr to, const void* from, size_t bytes) const {
  driver_->call(driver_->MemcpyHtoDAsync, "copying to the device", to, from, bytes, handle_);
}

void StreamView::copy_to_host(void* to, DevicePtr from, size_t bytes) const {
  driver_->call(driver_->MemcpyDtoHAsync, "copying from the device", to, from, bytes, handle_);
}

void StreamView::copy_on_device(DevicePtr to, DevicePtr from, size_t bytes) const {
  driver_->call(driver_->MemcpyDtoDAsync, "copying on the device", to, from, bytes, handle_);
}

void StreamView::fill(DevicePtr to, uint8_t value, size_t bytes) const {
  driver_->call(driver_->MemsetD8Async, "filling device memory", to, value, bytes, handle_);
}

void StreamView::record(Event& event) const {
  driver_->call(driver_->EventRecord, "recording an event", event.event_.get(), handle_);
}

void StreamView::wait(const Event& event) const {
  driver_->call(driver_->StreamWaitEvent, "making a stream wait for an event", handle_, event.event_.get(),
                0U);
}

void StreamView::wait_for_value(const uint32_t* word, uint32_t value) const {
  driver_->call(driver_->StreamWaitValue, "making a stream wait for a value", handle_,
                reinterpret_cast<DevicePtr>(word), value, kWaitUntilReached);
}

void StreamView::write_value(uint32_t* word, uint32_t value) const {
  driver_->call(driver_->StreamWriteValue, "writing a value in a stream", handle_,
                reinterpret_cast<DevicePtr>(word), value, kWriteBehindAll);
}

uint64_t StreamView::id() const {
  unsigned long long id = 0;  // NOLINT(google-runtime-int): the driver's type
  driver_->call(driver_->StreamGetId, "asking for a stream's number", handle_, &id);
  return id;
}

bool StreamView::capturing() const {
  CaptureStatus status = kNotCapturing;
  driver_->call(driver_->StreamIsCapturing, "asking whether a stream is captured", handle_, &status);
  return status != kNotCapturing;
}

void StreamView::call_on_host(HostFunction* function, void* argument) const {
  driver_->call(driver_->LaunchHostFunc, "queueing a host function", handle_, function, argument);
}

bool StreamView::idle() const {
  const Result result = driver_->StreamQuery(handle_);
  if (result != kSuccess && result != kNotReady)
    driver_->fail(result, driver_->StreamQuery.name, "asking whether a stream is idle");
  return result == kSuccess;
}

void StreamView::synchronize() const {
  driver_->call(driver_->StreamSynchronize, "waiting for a stream", handle_);
}

Stream::Stream(ContextPtr context, int priority)
    : Stream(make<StreamHandle>(context, context->driver().StreamCreate, context->driver().StreamDestroy,
                                "making a stream", kStreamNonBlocking, priority)) {}

Stream::Stream(Owned<StreamHandle> stream)
    : StreamView(stream.context()->driver(), stream.get()), stream_(std::move(stream)) {}

// --- Memory

namespace {

// The driver's error tells neither how much was asked for nor how much there is.
std::string allocating(const DriverTable& driver, size_t bytes) {
  std::string text = "allocating " + mebibytes(static_cast<int64_t>(bytes)) + " of device memory";
  size_t free_bytes = 0, total_bytes = 0;
  if (driver.MemGetInfo(&free_bytes, &total_bytes) == kSuccess)
    text += ", of which " + mebibytes(static_cast<int64_t>(free_bytes)) + " of " +
            mebibytes(static_cast<int64_t>(total_bytes)) + " are free";
  return text;
}

Owned<DevicePtr> allocate_device(ContextPtr context, size_t bytes) {
  const DriverTable& driver = context->driver();
  const ContextScope scope(*context);
  DevicePtr address = 0;
  const Result result = driver.MemAlloc(&address, bytes);
  if (result != kSuccess) driver.fail(result, driver.MemAlloc.name, allocating(driver, bytes));
  return {std::move(context), address, driver.MemFree};
}

}  // namespace

DeviceMemory::DeviceMemory(ContextPtr context, size_t bytes)
    : memory_(allocate_device(std::move(context), bytes)), bytes_(bytes) {}

PinnedMemory::PinnedMemory(ContextPtr context, size_t bytes)
    : memory_(make<void*>(context, context->driver().MemHostAlloc, context->driver().MemFreeHost,
                          "allocating " + mebibytes(static_cast<int64_t>(bytes)) + " of pinned host memory",
                          bytes, kHostAllocPortable)),
      bytes_(bytes) {}

std::optional<RegisteredMemory> RegisteredMemory::try_register(ContextPtr context, void* data, size_t bytes,
                                                               Access access, std::string& why_not) {
  const DriverTable& driver = context->driver();
  const DeviceInfo& device = context->device();
  if (!device.can_register || (access == Access::read_only && !device.can_register_read_only)) {
    why_not = device.name + " cannot pin " + (device.can_register ? "read-only " : "") + "memory of others";
    return std::nullopt;
  }
  const ContextScope scope(*context);
  const unsigned flags = kHostRegisterPortable | (access == Access::read_only ? kHostRegisterReadOnly : 0U);
  const Result result = driver.MemHostRegister(data, bytes, flags);
  if (result == kSuccess)
    return RegisteredMemory(Owned<void*>(std::move(context), data, driver.MemHostUnregister), bytes);
  if (is_sticky(result)) driver.fail(result, driver.MemHostRegister.name, "pinning host memory");
  why_not = std::string(driver.MemHostRegister.name) + " returned " + driver.error_name(result) + " for " +
            mebibytes(static_cast<int64_t>(bytes));
  return std::nullopt;
}

// --- Function, Module

std::optional<size_t> Function::parameter_bytes(size_t index) const {
  if (!driver_->FuncGetParamInfo) return std::nullopt;
  size_t offset = 0, bytes = 0;
  const Result result = driver_->FuncGetParamInfo(handle_, index, &offset, &bytes);
  if (result == kInvalidValue) return 0;
  if (result != kSuccess)
    driver_->fail(result, driver_->FuncGetParamInfo.name, "asking for a kernel's parameters");
  return bytes;
}

void Function::allow_shared_memory(unsigned bytes) const {
  driver_->call(driver_->FuncSetAttribute, "asking for shared memory", handle_, kMaxDynamicSharedBytes,
                static_cast<int>(bytes));
}

void Function::launch(const StreamView& stream, Grid grid, unsigned threads, unsigned shared_bytes,
                      void** parameters) const {
  driver_->call(driver_->LaunchKernel, "launching a kernel", handle_, grid.x, grid.y, grid.z, threads, 1U, 1U,
                shared_bytes, stream.handle_, parameters, nullptr);
}

Module::Module(ContextPtr context, const std::string& image)
    : module_(make<ModuleHandle>(context, context->driver().ModuleLoadData, context->driver().ModuleUnload,
                                 "loading kernels of " + mebibytes(static_cast<int64_t>(image.size())),
                                 static_cast<const void*>(image.data()))) {}

Function Module::function(const std::string& name) const {
  const DriverTable& driver = context().driver();
  const ContextScope scope(context());
  FunctionHandle handle = nullptr;
  const Result result = driver.ModuleGetFunction(&handle, module_.get(), name.c_str());
  if (result != kSuccess)
    driver.fail(result, driver.ModuleGetFunction.name, "looking for the kernel " + name);
  return {driver, handle};
}

}  // namespace moerun::cuda
