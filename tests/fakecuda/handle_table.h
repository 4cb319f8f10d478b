// The driver's handles and the objects behind them. A handle is a number that is never used again, so that
// using a destroyed one is found every time.
#pragma once
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <vector>

namespace fakecuda {

template <class Object>
class HandleTable {
 public:
  void* add(std::shared_ptr<Object> object) {
    const std::unique_lock lock(mutex_);
    void* const handle = reinterpret_cast<void*>(next_ += kStep);
    objects_[handle] = std::move(object);
    return handle;
  }
  std::shared_ptr<Object> find(void* handle) const {
    const std::shared_lock lock(mutex_);
    const auto found = objects_.find(handle);
    return found == objects_.end() ? nullptr : found->second;
  }
  std::shared_ptr<Object> remove(void* handle) {
    const std::unique_lock lock(mutex_);
    const auto found = objects_.find(handle);
    if (found == objects_.end()) return nullptr;
    std::shared_ptr<Object> object = std::move(found->second);
    objects_.erase(found);
    return object;
  }
  std::vector<std::shared_ptr<Object>> all() const {
    const std::shared_lock lock(mutex_);
    std::vector<std::shared_ptr<Object>> objects;
    for (const auto& [handle, object] : objects_) objects.push_back(object);
    return objects;
  }
  int64_t size() const {
    const std::shared_lock lock(mutex_);
    return static_cast<int64_t>(objects_.size());
  }

 private:
  static constexpr uintptr_t kStep = 16;  // looks like a pointer
  mutable std::shared_mutex mutex_;
  uintptr_t next_ = 0x10000;
  std::map<void*, std::shared_ptr<Object>> objects_;
};

}  // namespace fakecuda
